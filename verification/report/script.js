"use strict";
(() => {
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const root = document.documentElement;
const bubble = document.getElementById("bubble");

// theme: as the system has it, light or dark; remembered where the browser allows it
const kept = { get: () => { try { return localStorage.getItem("plumecast-theme"); } catch { return null; } },
  set: theme => { try { localStorage.setItem("plumecast-theme", theme); } catch { /* a page without storage */ } } };
const paint = theme => { if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme; };
const themes = all("input[name=theme]");
const wanted = themes.find(input => input.value === kept.get()) || themes[0];
wanted.checked = true;
paint(wanted.value);
themes.forEach(input => input.addEventListener("change", () => { paint(input.value); kept.set(input.value); }));
all(".theme").forEach(element => { element.hidden = false; });

// the bubble beside what is pointed at
const show = (lines, box) => {
  bubble.textContent = lines;
  bubble.hidden = false;
  const own = bubble.getBoundingClientRect(), edge = 8;
  const left = Math.min(Math.max(box.left + box.width / 2 - own.width / 2, edge), root.clientWidth - own.width - edge);
  const above = box.top - own.height - edge;
  bubble.style.left = `${left}px`;
  bubble.style.top = `${above > edge ? above : box.bottom + edge}px`;
};
const hide = () => { bubble.hidden = true; };
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
document.addEventListener("scroll", hide, { passive: true });

// switches of one kind move together: the pair of models stays when the region changes
const bind = scope => all("input[data-sync]", scope).forEach(input => input.addEventListener("change", () => {
  all(`input[data-sync="${input.dataset.sync}"]`).filter(other => other.value === input.value).forEach(other => { other.checked = true; });
}));

// cards: one stop of the tab key each, arrows inside
const explain = scope => all("table.card", scope).forEach(card => {
  const rows = all("tbody tr", card).map(row => all("td", row));
  const cells = rows.flat();
  cells.forEach(cell => { cell.dataset.tip = cell.title; cell.removeAttribute("title"); cell.tabIndex = -1; });
  if (cells.length) cells[0].tabIndex = 0;
  const tip = cell => show(cell.dataset.tip, cell.getBoundingClientRect());
  card.addEventListener("pointerover", event => { const cell = event.target.closest("td"); if (cell) tip(cell); });
  card.addEventListener("pointerleave", hide);
  card.addEventListener("focusin", event => {
    const cell = event.target.closest("td");
    if (!cell) return;
    cells.forEach(other => { other.tabIndex = other === cell ? 0 : -1; });
    cell.setAttribute("aria-describedby", "bubble");
    tip(cell);
  });
  card.addEventListener("focusout", event => { event.target.removeAttribute("aria-describedby"); hide(); });
  card.addEventListener("keydown", event => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const y = rows.findIndex(row => row.includes(event.target));
    if (!step || y < 0) return;
    const next = (rows[y + step[0]] || [])[rows[y].indexOf(event.target) + step[1]];
    event.preventDefault();
    if (next) next.focus();
  });
});

const prepare = scope => { bind(scope); explain(scope); };
prepare(document);

// curves: every region and season, drawn from the packed numbers
const DASH = "–", FRAME = { width: 360, height: 235, left: 47, right: 8, top: 27, bottom: 39 };
const safe = text => String(text).replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);
const minus = text => text.replace("-", "−");
const number = (value, signed) => {
  if (value === null || value === undefined) return DASH;
  const size = Math.abs(value);
  if (size > 0 && size < 0.0095 && !signed) return (value < 0 ? "−" : "") + size.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  const text = value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 || signed ? 2 : 3);
  return minus(signed && Number(text) > 0 ? "+" + text : text);
};
const interval = (low, high, signed) => low === null || high === null ? "" : low >= 0
  ? `${number(low, signed)}–${number(high, signed)}`.replaceAll("+", "") : `${number(low, signed)} to ${number(high, signed)}`;
const leadName = hours => hours < 24 ? `${+hours.toFixed(2)} h` : `day ${+(hours / 24).toFixed(2)}`;
const steps = (low, high, most, whole) => {
  if (low === high) return [{ value: low, text: minus(String(+low.toFixed(2))) }];
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(size => size >= raw - 1e-12);
  if (whole) step = Math.max(1, Math.ceil(step));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (Math.abs(step / 10 ** Math.floor(Math.log10(step)) - 2.5) < 1e-6 ? 1 : 0));
  return Array.from({ length: last - first + 1 }, (_, i) => ({ value: (first + i) * step, text: minus(((first + i) * step).toFixed(digits)) }));
};

const unpack = async text => {
  const bytes = Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};

const start = views => {
  const days = views.leads.map(hours => hours / 24);
  const column = (found, part) => found && Array.isArray(found[part]) ? found[part] : null;
  const countOf = (found, i) => found ? (Array.isArray(found[3]) ? found[3][i] : found[3]) : 0;
  const at = (series, where) => views.values[`${series}.${where.region}.${where.season}.${where.channel}`];

  const range = (panel, drawn) => {
    const finite = drawn.flatMap(line => [line.value, line.low, line.high].flatMap(part => part || [])).filter(v => v !== null);
    const centres = drawn.flatMap(line => line.value).filter(v => v !== null);
    if (panel.reference !== null) {
      const reach = Math.max(0.3, ...centres.map(v => Math.abs(v - panel.reference) * 1.1));
      return [Math.max(panel.reference - reach, 0), panel.reference + reach];
    }
    const top = panel.top !== null ? panel.top : 1.04 * Math.max(1e-9, ...finite);
    const lowest = Math.min(0, ...centres);
    return [lowest - 0.05 * (top - lowest) * (lowest < 0), top];
  };

  const draw = (panel, where) => {
    const channel = views.channels[where.channel];
    const drawn = panel.lines.map(line => {
      const found = at(line.series, where);
      return { ...line, value: column(found, 0), low: column(found, 1), high: column(found, 2), found };
    }).filter(line => line.value);
    const f = FRAME, [low, high] = range(panel, drawn);
    const first = Math.min(...days), last = Math.max(...days), pad = Math.max((last - first) * 0.03, 0.05);
    const x = day => f.left + (day - first + pad) / (last - first + 2 * pad) * (f.width - f.left - f.right);
    const y = value => f.height - f.bottom - (Math.min(Math.max(value, low), high) - low) / (high - low) * (f.height - f.top - f.bottom);
    const point = (i, value) => `${x(days[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    const parts = [];
    for (const tick of steps(low, high, 6)) parts.push(
      `<path d="M${f.left} ${y(tick.value).toFixed(1)}H${f.width - f.right}" stroke="var(--rule)"/>`,
      `<text x="${f.left - 5}" y="${(y(tick.value) + 3.8).toFixed(1)}" text-anchor="end">${tick.text}</text>`);
    for (const tick of steps(first, last, 8, last - first >= 4)) parts.push(
      `<path d="M${x(tick.value).toFixed(1)} ${f.top}V${f.height - f.bottom}" stroke="var(--rule)"/>`,
      `<text x="${x(tick.value).toFixed(1)}" y="${f.height - f.bottom + 14}" text-anchor="middle">${tick.text}</text>`);
    parts.push(`<path d="M${f.left} ${f.top}V${f.height - f.bottom}H${f.width - f.right}" stroke="var(--muted)" fill="none"/>`);
    if (panel.reference !== null) parts.push(`<path d="M${f.left} ${y(panel.reference).toFixed(1)}H${f.width - f.right}" stroke="var(--ink)"/>`);
    for (const line of drawn) {
      const colour = `var(--m${line.model % 8})`, there = days.map((_, i) => i).filter(i => line.value[i] !== null);
      const band = line.low && line.high ? there.filter(i => line.low[i] !== null && line.high[i] !== null) : [];
      if (band.length > 1) parts.push(`<path d="M${band.map(i => point(i, line.high[i])).join("L")}L${[...band].reverse().map(i => point(i, line.low[i])).join("L")}Z" fill="${colour}" opacity=".16"/>`);
      else band.forEach(i => parts.push(`<path d="M${point(i, line.low[i])}L${point(i, line.high[i])}" stroke="${colour}" stroke-width="5" opacity=".3"/>`));
      const pieces = days.map((_, i) => i).reduce((path, i) => line.value[i] === null ? path + " " : path + (path === "" || path.endsWith(" ") ? "M" : "L") + point(i, line.value[i]), "");
      const dashes = line.dashed ? "4 3" : views.dashes[line.model];
      parts.push(`<path d="${pieces}" fill="none" stroke="${colour}" stroke-width="2.1" stroke-linejoin="round"${dashes ? ` stroke-dasharray="${dashes}"` : ""}/>`);
      const every = Math.max(1, Math.round(days.length / 10));
      if (!line.dashed) there.filter(i => i % every === 0).forEach(i => parts.push(`<path d="${views.shapes[line.model]}" fill="${colour}" transform="translate(${(x(days[i]) - 15 * 0.75).toFixed(1)} ${(y(line.value[i]) - 5 * 0.75).toFixed(1)}) scale(.75)"/>`));
    }
    const units = panel.units && channel.units ? ` (${channel.units})` : "";
    const view = `${views.regions[where.region]}, ${views.seasons[where.season].name}`;
    const alt = `${panel.title} of ${channel.long_name} by lead, ${view}, for ${views.models.join(", ")}; the numbers are in the table below`;
    const empty = drawn.length ? "" : `<text x="${(f.left + f.width) / 2}" y="${f.height / 2}" text-anchor="middle" fill="var(--muted)">nothing scored here</text>`;
    const svg = `<svg viewBox="0 0 ${f.width} ${f.height}" role="img" aria-label="${safe(alt)}" class="drawn"><text x="${f.left}" y="15" class="title">${safe(panel.title + units)}</text>`
      + `${parts.join("")}${empty}<text x="${(f.left + f.width - f.right) / 2}" y="${f.height - 6}" text-anchor="middle">lead (days)</text><path class="hair" stroke="var(--ink)" stroke-dasharray="2 2"/></svg>`;
    const read = i => [leadName(views.leads[i]), ...drawn.map(line => {
      const limits = line.low && line.high ? interval(line.low[i], line.high[i]) : "";
      return `${views.series[line.series].head} ${number(line.value[i])}${limits && ` [${limits}]`}, n = ${countOf(line.found, i)}`;
    })].join("\n");
    return { svg, read, x };
  };

  const table = where => {
    const shown = views.series.map((series, k) => ({ ...series, found: at(k, where) })).filter(series => column(series.found, 0));
    const cell = (series, i) => {
      const [value, low, high] = [0, 1, 2].map(part => (column(series.found, part) || [])[i]);
      const limits = low === undefined || high === undefined ? "" : interval(low, high, series.signed);
      return `<td>${number(value, series.signed)}${limits && ` [${limits}]`}</td>`;
    };
    const heads = ["lead", ...shown.map(series => series.head), "n"].map((text, k) => `<th scope="col"${k ? "" : ' class="name"'}>${safe(text)}</th>`);
    const rows = views.leads.map((hours, i) => `<tr><th scope="row">${leadName(hours)}</th>${shown.map(series => cell(series, i)).join("")}<td>${Math.max(0, ...shown.map(series => countOf(series.found, i)))}</td></tr>`);
    const channel = views.channels[where.channel];
    const caption = `${channel.long_name}, ${views.regions[where.region]}, ${views.seasons[where.season].name}: scores in ${channel.units || "1"}, skills and ratios without units; [95 % intervals]`;
    return `<div class="scroll"><table><caption>${safe(caption)}</caption><thead><tr>${heads.join("")}</tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
  };

  const follow = (figure, drawing) => {
    const svg = figure.querySelector("svg"), hair = svg.querySelector(".hair");
    let chosen = -1;
    const point = i => {
      chosen = i;
      const across = drawing.x(days[i]).toFixed(1);
      hair.setAttribute("d", `M${across} ${FRAME.top}V${FRAME.height - FRAME.bottom}`);
      const box = svg.getBoundingClientRect(), at = box.left + across / FRAME.width * box.width;
      show(drawing.read(i), { left: at, width: 0, top: box.top + 18, bottom: box.bottom });
    };
    const leave = () => { hair.removeAttribute("d"); hide(); };
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect(), across = (event.clientX - box.left) / box.width * FRAME.width;
      const far = days.map(day => Math.abs(drawing.x(day) - across));
      point(far.indexOf(Math.min(...far)));
    });
    svg.addEventListener("pointerleave", leave);
    figure.onkeydown = event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      point(Math.min(Math.max(chosen + step, 0), days.length - 1));
    };
    figure.onblur = leave;
    figure.tabIndex = 0;
  };

  const chosen = name => Number(document.querySelector(`input[name="${name}"]:checked`).value);
  const redraw = () => {
    const view = { region: chosen("region"), season: chosen("season") };
    const season = views.seasons[view.season], counts = [...new Set(season.n)];
    const n = counts.length === 1 ? `n = ${counts[0]}` : views.models.map((name, k) => `${name} n = ${season.n[k]}`).join(", ");
    const rest = view.season > 0 && views.compared ? "; skill and tests: all year" : "";
    document.getElementById("view").textContent = `${views.regions[view.region]}, ${season.name}: ${n} initialisations${rest}`;
    all("[data-channel]").forEach(block => {
      const where = { ...view, channel: Number(block.dataset.channel) };
      all("figure", block).forEach((figure, k) => {
        const drawing = draw(views.panels[k], where);
        figure.querySelector("svg").outerHTML = drawing.svg;
        follow(figure, drawing);
      });
      const details = block.querySelector("details");
      const fill = () => { if (details.open) details.querySelector("div").outerHTML = table(where); };
      details.ontoggle = fill;
      fill();
    });
  };
  all(".controls").forEach(element => { element.hidden = false; });
  all("input[name=region], input[name=season]").forEach(input => input.addEventListener("change", redraw));
  redraw();
};

if ("DecompressionStream" in window) {
  unpack(document.getElementById("numbers").textContent.trim()).then(start);
  all("[data-packed]").forEach(async part => {
    const home = part.parentElement;
    part.outerHTML = await unpack(part.dataset.packed);
    prepare(home);
  });
}
})();
