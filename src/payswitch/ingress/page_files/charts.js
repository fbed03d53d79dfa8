// Charts of the last minutes: plain SVG, drawn anew with each sample. All of them share one time
// axis and one cursor.

const SPAN_MS = 5 * 60 * 1000;
const GAP_MS = 3500; // longer than this between two samples, nothing is known in between
const LEFT = 44, RIGHT = 8, TOP = 12, BOTTOM = 22, BAND = 8;

function element(name, className, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  if (className) made.setAttribute("class", className);
  if (parent) parent.append(made);
  return made;
}

function place(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

// The smallest of 1, 2, 5, 10, 20 … that is not below the value.
function round(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * unit).find((each) => each >= value * 0.999);
}

export class Chart {
  // series: [{color, label, kind: "stack" | "area" | "curve" | "dashed", value(point)}]; a color is
  // a class of the style sheet. `band` gives a point's color in the strip, null for none.
  // The axis is narrow: `tick` says a value in some seven characters.
  constructor(options) {
    const { title, series, format, tick = format, least = 1, logarithmic = false } = options;
    const { band = null } = options;
    Object.assign(this, { title, series, format, tick, least, logarithmic, band });
    this.points = [];
    this.cursor = null;
    this.figure = document.createElement("figure");
    this.figure.className = "card chart";
    const caption = document.createElement("figcaption");
    const heading = document.createElement("strong");
    heading.textContent = title;
    caption.append(heading);
    this.legends = series.map((each) => {
      const legend = document.createElement("div");
      legend.className = `legend ${each.color}`;
      const value = document.createElement("span");
      legend.append(`${each.label} `, value);
      caption.append(legend);
      return value;
    });
    this.svg = element("svg");
    this.svg.setAttribute("role", "img");
    this.figure.append(caption, this.svg);
    this.grid = element("g", "", this.svg);
    this.marks = element("g", "", this.svg);
    this.line = element("line", "cursor", this.svg);
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  // The time (ms) at a pointer, as far as there are samples.
  timeAt(clientX) {
    const box = this.svg.getBoundingClientRect();
    const share = (clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return share < 0 || share > 1 ? null : this.end - SPAN_MS * (1 - share);
  }

  show(points) {
    this.points = points;
    this.draw();
  }

  point(at) {
    let nearest = null;
    for (const point of this.points) {
      if (nearest === null || Math.abs(point.at - at) < Math.abs(nearest.at - at)) nearest = point;
    }
    return nearest !== null && Math.abs(nearest.at - at) < GAP_MS ? nearest : null;
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width || !this.points.length) return;
    this.end = this.points[this.points.length - 1].at;
    const visible = this.points.filter((point) => point.at >= this.end - SPAN_MS);
    const x = (at) => LEFT + (width - LEFT - RIGHT) * (1 - (this.end - at) / SPAN_MS);
    const floor = height - BOTTOM - (this.band ? BAND + 4 : 0);
    const scale = this.logarithmic ? this.logScale(visible, floor) : this.scale(visible, floor);
    this.drawGrid(width, height, x, scale);
    this.marks.replaceChildren();
    const runs = split(visible);
    const below = new Map();
    for (const each of this.series) this.drawSeries(each, runs, x, scale.y, floor, below);
    if (this.band) this.drawBand(runs, x, floor + 4);
    this.drawCursor(x, height);
    this.describe(visible);
  }

  top(visible) {
    return Math.max(
      this.least,
      ...visible.map((point) => {
        let stacked = 0, most = 0;
        for (const each of this.series) {
          const value = each.value(point) ?? 0;
          if (each.kind === "stack") stacked += value;
          most = Math.max(most, value, stacked);
        }
        return most;
      }),
    );
  }

  scale(visible, floor) {
    const step = round(this.top(visible) / 4);
    const most = step * Math.ceil(this.top(visible) / step);
    const ticks = Array.from({ length: Math.round(most / step) + 1 }, (_, index) => index * step);
    return { ticks, y: (value) => floor - (floor - TOP) * (value / most) };
  }

  logScale(visible, floor) {
    const most = 10 ** Math.ceil(Math.log10(this.top(visible) * 1.05));
    const decades = Math.log10(most);
    const ticks = Array.from({ length: decades + 1 }, (_, index) => 10 ** index);
    const y = (value) => floor - (floor - TOP) * (Math.log10(Math.max(value, 1)) / decades);
    return { ticks, y };
  }

  drawGrid(width, height, x, { ticks, y }) {
    this.grid.replaceChildren();
    for (const tick of ticks) {
      const level = y(tick);
      place(element("line", "grid", this.grid), { x1: LEFT, x2: width - RIGHT, y1: level, y2: level });
      const text = element("text", "", this.grid);
      place(text, { x: LEFT - 7, y: level + 4, "text-anchor": "end" });
      text.textContent = this.tick(tick);
    }
    for (const minutes of width < 420 ? [0, 2, 4] : [0, 1, 2, 3, 4, 5]) {
      const text = element("text", "", this.grid);
      const anchor = minutes === 0 ? "end" : minutes === 5 ? "start" : "middle";
      place(text, { x: x(this.end - minutes * 60000), y: height - 5, "text-anchor": anchor });
      text.textContent = minutes ? `−${minutes} min` : "now";
    }
  }

  drawSeries(each, runs, x, y, floor, below) {
    const filled = each.kind === "stack" || each.kind === "area";
    for (const run of runs) {
      const up = [], down = [];
      for (const point of run) {
        const value = each.value(point);
        if (value === null) {
          this.drawPath(each, up, down, filled);
          up.length = down.length = 0;
          continue;
        }
        const base = each.kind === "stack" ? below.get(point) ?? 0 : 0;
        if (each.kind === "stack") below.set(point, base + value);
        const at = x(point.at).toFixed(1);
        up.push(`${at} ${y(base + value).toFixed(1)}`);
        down.unshift(`${at} ${(base ? y(base) : floor).toFixed(1)}`);
      }
      this.drawPath(each, up, down, filled);
    }
  }

  drawPath(each, up, down, filled) {
    if (!up.length) return;
    if (filled) {
      const soft = each.kind === "area" ? " soft" : "";
      const area = element("path", `area${soft} ${each.color}`, this.marks);
      area.setAttribute("d", `M${up.join("L")}L${down.join("L")}Z`);
    }
    if (each.kind !== "stack") {
      const dashed = each.kind === "dashed" ? " dashed" : "";
      const curve = element("path", `curve${dashed} ${each.color}`, this.marks);
      curve.setAttribute("d", `M${up.join("L")}${up.length === 1 ? "h0.1" : ""}`);
    }
  }

  // A strip under the plot: the color of each second.
  drawBand(runs, x, top) {
    for (const run of runs) {
      for (let first = 0; first < run.length;) {
        const color = this.band(run[first]);
        let past = first + 1;
        while (past < run.length && this.band(run[past]) === color) past += 1;
        const from = x(run[first].at), to = x(run[Math.min(past, run.length - 1)].at);
        if (color !== null) {
          const strip = element("rect", `band ${color}`, this.marks);
          place(strip, { x: from, y: top, width: Math.max(to - from, 1), height: BAND, rx: 2 });
        }
        first = past;
      }
    }
  }

  drawCursor(x, height) {
    const point = this.cursor === null ? null : this.point(this.cursor);
    const shown = point ?? this.points[this.points.length - 1];
    this.series.forEach((each, index) => {
      const value = each.value(shown);
      this.legends[index].textContent = value === null ? "–" : this.format(value);
    });
    this.line.style.display = point ? "" : "none";
    if (point) place(this.line, { x1: x(point.at), x2: x(point.at), y1: TOP, y2: height - BOTTOM });
  }

  describe(visible) {
    const parts = this.series.map((each) => {
      const values = visible.map((point) => each.value(point)).filter((value) => value !== null);
      if (!values.length) return `${each.label}: nothing`;
      const now = this.format(values[values.length - 1]);
      return `${each.label}: ${now} now, at most ${this.format(Math.max(...values))}`;
    });
    this.svg.setAttribute("aria-label", `${this.title}, the last five minutes. ${parts.join("; ")}`);
  }
}

function split(points) {
  const runs = [];
  for (const point of points) {
    const run = runs[runs.length - 1];
    if (run && point.at - run[run.length - 1].at <= GAP_MS) run.push(point);
    else runs.push([point]);
  }
  return runs;
}

// A pointer over one chart shows its instant in all of them.
export function shareCursor(charts) {
  const move = (at) => {
    for (const chart of charts) {
      chart.cursor = at;
      chart.draw();
    }
  };
  for (const chart of charts) {
    chart.svg.addEventListener("pointermove", (event) => move(chart.timeAt(event.clientX)));
    chart.svg.addEventListener("pointerleave", () => move(null));
  }
}
