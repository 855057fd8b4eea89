"""Scheduled runs: from a source of analyses to published ensemble products every cycle, unattended.

recipe   what a schedule is made of            ledger    who runs what: states, leases, events (SQLite)
source   where analyses come from              schedule  which cycles are due, stale, to be caught up
states   where the members start from          verify    scores and consistency of past runs
stages   one run, from data to publication     worker    tick and serve: take, run, retry, hand on
status   status.json, Prometheus file          page      the status page
"""
