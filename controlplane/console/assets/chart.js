// A guest's history and the way of a trace, drawn on canvases: as many points and spans as there
// are make no elements.
const SPAN_ROWS = 400;
const ROW = 18;
const NAMES = 260;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  return { fg: named("fg"), dim: named("dim"), line: named("line"), lit: named("lit"), bad: named("bad") };
}

// A canvas at the screen's own resolution, cleared; its context counts in CSS pixels.
export function cleared(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  draw.clearRect(0, 0, width, height);
  draw.font = "12px system-ui, sans-serif";
  return draw;
}

// `lines`: [{ name, colour, points: [[seconds, value]] }]; `unit` gives the text of a value. The
// newest `span` seconds before `now`.
export function chart(canvas, lines, now, span, unit) {
  const width = canvas.clientWidth;
  const height = 120;
  const draw = cleared(canvas, width, height);
  const theme = colours();
  const most = Math.max(1e-9, ...lines.flatMap((line) => line.points.map(([, value]) => value)));
  const x = (at) => width * (1 - (now - at) / span);
  const y = (value) => height - 16 - (height - 34) * (value / most);
  draw.strokeStyle = theme.line;
  draw.strokeRect(0.5, y(most), width - 1, height - 16 - y(most));
  let left = 4;
  for (const line of lines) {
    draw.strokeStyle = theme[line.colour];
    draw.fillStyle = theme[line.colour];
    draw.beginPath();
    let before = null;
    for (const [at, value] of line.points) {
      // What is missing in between is not drawn over.
      if (before === null || at - before > 30) draw.moveTo(x(at), y(value));
      else draw.lineTo(x(at), y(value));
      before = at;
    }
    draw.stroke();
    const last = line.points.length ? unit(line.points[line.points.length - 1][1]) : "-";
    draw.fillText(`${line.name} ${last}`, left, 12);
    left += draw.measureText(`${line.name} ${last}`).width + 16;
  }
  draw.fillStyle = theme.dim;
  draw.fillText(unit(most), width - draw.measureText(unit(most)).width - 4, 12);
  draw.fillText(`${Math.round(span / 60)} min ago`, 4, height - 3);
  draw.fillText("now", width - 28, height - 3);
}

// Spans with their depth, parents before children, in the order they began.
export function ordered(spans) {
  const known = new Map(spans.map((span) => [span.spanId, span]));
  const below = new Map();
  for (const span of spans) {
    const parent = known.has(span.parentSpanId) ? span.parentSpanId : "";
    below.set(parent, [...(below.get(parent) || []), span]);
  }
  const rows = [];
  const walk = (parent, depth) => {
    const children = (below.get(parent) || []).sort((a, b) => (BigInt(a.startTimeUnixNano) < BigInt(b.startTimeUnixNano) ? -1 : 1));
    for (const span of children) {
      rows.push({ span, depth });
      walk(span.spanId, depth + 1);
    }
  };
  walk("", 0);
  return rows;
}

// Draws the spans' bars; `zoom` 1 shows all of the time in `room` pixels. Returns how many are left out.
export function waterfall(canvas, rows, zoom, room) {
  const shown = rows.slice(0, SPAN_ROWS);
  const theme = colours();
  const began = shown.reduce((least, { span }) => (BigInt(span.startTimeUnixNano) < least ? BigInt(span.startTimeUnixNano) : least), BigInt(shown[0].span.startTimeUnixNano));
  const at = (nanos) => Number(BigInt(nanos) - began) / 1e9;
  const end = Math.max(1e-6, ...shown.map(({ span }) => at(span.endTimeUnixNano === "0" ? span.startTimeUnixNano : span.endTimeUnixNano)));
  const bars = Math.max(80, room - NAMES - 60) * zoom;
  canvas.style.width = `${NAMES + bars + 60}px`;
  const draw = cleared(canvas, NAMES + bars + 60, shown.length * ROW + 4);
  shown.forEach(({ span, depth }, index) => {
    const top = index * ROW;
    const first = at(span.startTimeUnixNano);
    const last = span.endTimeUnixNano === "0" ? end : at(span.endTimeUnixNano);
    draw.fillStyle = theme.fg;
    draw.save();
    draw.beginPath();
    draw.rect(0, top, NAMES - 6, ROW);
    draw.clip();
    draw.fillText(span.name.replace(/^.*\.(?=\w+\/)/, ""), Math.min(depth, 10) * 10, top + 13);
    draw.restore();
    draw.fillStyle = span.status === "ERROR" ? theme.bad : theme.lit;
    const left = NAMES + bars * (first / end);
    const wide = Math.max(2, bars * ((last - first) / end));
    draw.fillRect(left, top + 4, wide, ROW - 8);
    draw.fillStyle = theme.dim;
    const took = last - first;
    draw.fillText(took >= 1 ? `${took.toFixed(1)} s` : `${(took * 1e3).toFixed(1)} ms`, left + wide + 4, top + 13);
  });
  return rows.length - shown.length;
}
