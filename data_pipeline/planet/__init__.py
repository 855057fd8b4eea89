"""A simulated planet: nature runs and physics ensembles of SPEEDY, through `jcm` (extra `simulate`).

`model` steps the atmosphere, `vertical` brings its sigma levels to those of the schema, `states` keeps restart states, `nature`
writes an analysis store while the model runs, `perturbations` draws analyses around a known truth, `ensembles` makes forecasts.
"""
