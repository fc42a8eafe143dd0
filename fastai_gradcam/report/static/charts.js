// Small line charts over the frames, with a mark at the current one.

const CHART = { width: 320, height: 104, left: 6, right: 34, top: 8, bottom: 16 };

function svg(tag, attributes = {}, text = '') {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, setting] of Object.entries(attributes)) element.setAttribute(name, setting);
  if (text) element.textContent = text;
  return element;
}

/** Round numbers around what the lines reach; shares and correlations always get 0 to 1. */
function domain(lines) {
  const known = lines.flatMap((line) => line.values).filter((x) => x !== null);
  const low = Math.min(0, ...known);
  const high = Math.max(...known);
  if (lines.every((line) => line.share) && high <= 1) return [low < 0 ? -1 : 0, 1];
  const step = niceStep((high - low) / 2 || 1);
  return [Math.floor(low / step) * step, Math.ceil(high / step) * step || step];
}

function niceStep(size) {
  const unit = 10 ** Math.floor(Math.log10(size));
  return unit * [1, 2, 2.5, 5, 10].find((factor) => factor * unit >= size * 0.999);
}

function xOf(frame) {
  const inner = CHART.width - CHART.left - CHART.right;
  return CHART.left + (frameCount > 1 ? (frame / (frameCount - 1)) * inner : inner / 2);
}

function frameAt(event, picture) {
  const box = picture.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * CHART.width;
  const inner = CHART.width - CHART.left - CHART.right;
  return Math.round(((x - CHART.left) / inner) * (frameCount - 1));
}

/** The points of a line in parts that hang together: broken where a number is missing in a frame that was drawn. */
function partsOf(values) {
  const parts = [[]];
  values.forEach((x, frame) => {
    if (x !== null) parts.at(-1).push(frame);
    else if (!run.frames[frame].note) parts.push([]);
  });
  return parts.filter((part) => part.length);
}

/** `lines` are `{ name, values, about, share }`; gives the figure and a function that marks a frame. */
function chart(title, lines) {
  const [low, high] = domain(lines);
  const inner = CHART.height - CHART.top - CHART.bottom;
  const y = (x) => CHART.top + (1 - (x - low) / (high - low)) * inner;
  const picture = svg('svg', { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: 'img' });
  drawAxes(picture, low, high, y, lines.every((line) => line.percent));
  const mark = svg('line', { class: 'mark', y1: CHART.top, y2: CHART.height - CHART.bottom });
  picture.append(mark);
  const parts = lines.map((line, i) => drawLine(picture, line, i, y));
  picture.addEventListener('click', (event) => goTo(frameAt(event, picture)));
  const heading = make('figcaption', {}, make('span', { className: 'chart-title', textContent: title }));
  heading.append(...parts.map((part) => part.key));
  const element = make('figure', { className: 'chart' }, heading, picture, valuesOf(title, lines));
  return { element, update: (frame) => markFrame(title, frame, picture, mark, parts, y) };
}

/** All values of a chart as a table, made when it is opened. */
function valuesOf(title, lines) {
  const table = make('table', {}, make('caption', { className: 'unseen', textContent: title }));
  const details = make('details', { className: 'values' }, make('summary', { textContent: 'Values', attributes: { 'aria-label': `Values of ${title}` } }), table);
  details.addEventListener('toggle', () => {
    if (!details.open || table.rows.length) return;
    const head = table.createTHead().insertRow();
    for (const name of ['Frame', ...lines.map((line) => line.name)]) head.append(make('th', { scope: 'col', textContent: name }));
    const body = table.createTBody();
    run.frames.forEach((frame, i) => {
      const row = body.insertRow();
      row.append(make('th', { scope: 'row', textContent: `${frame.frame}, ${frame.name}` }));
      for (const line of lines) row.insertCell().textContent = line.write(line.values[i]);
    });
  });
  return details;
}

function drawAxes(picture, low, high, y, inPercent) {
  for (const x of [low, (low + high) / 2, high]) {
    picture.append(svg('line', { class: 'rule', x1: CHART.left, x2: CHART.width - CHART.right, y1: y(x), y2: y(x) }));
    picture.append(svg('text', { x: CHART.width - CHART.right + 5, y: y(x) + 3.5 }, inPercent ? percent(x) : String(Number(x.toPrecision(3)))));
  }
  run.frames.forEach(({ fit }, frame) => {
    if (!frame || fit === run.frames[frame - 1].fit) return;
    const x = xOf(frame - 0.5);
    picture.append(svg('line', { class: 'fit', x1: x, x2: x, y1: CHART.top, y2: CHART.height - CHART.bottom }));
    picture.append(svg('text', { x: x + 3, y: CHART.height - 4 }, `fit ${fit + 1}`));
  });
  for (const x of alarmFrames().map(xOf)) {
    picture.append(svg('line', { class: 'alarm', x1: x, x2: x, y1: CHART.top, y2: CHART.height - CHART.bottom }));
    const late = x > CHART.width / 2;
    picture.append(svg('text', { class: 'alarm', x: late ? x - 3 : x + 3, y: CHART.top + 9, 'text-anchor': late ? 'end' : 'start' }, 'shortcut'));
  }
  picture.append(svg('text', { x: CHART.left, y: CHART.height - 4 }, `frame ${run.frames[0].frame}`));
  if (frameCount > 1) {
    const last = run.frames[frameCount - 1].frame;
    picture.append(svg('text', { x: CHART.width - CHART.right, y: CHART.height - 4, 'text-anchor': 'end' }, `${last}`));
  }
}

function drawLine(picture, line, i, y) {
  const at = (frame) => `${xOf(frame).toFixed(1)} ${y(line.values[frame]).toFixed(1)}`;
  const parts = partsOf(line.values);
  const path = parts.map((part) => `M${part.map(at).join('L')}`).join('');
  picture.append(svg('path', { class: `line line-${i % 4}`, d: path }));
  // A value without neighbours is no line.
  for (const [frame] of parts.filter((part) => part.length === 1)) {
    picture.append(svg('circle', { class: `alone line-${i % 4}`, r: 2.2, cx: xOf(frame), cy: y(line.values[frame]) }));
  }
  const dot = svg('circle', { class: `dot line-${i % 4}`, r: 3.2 });
  picture.append(dot);
  const current = make('span', { className: 'chart-value' });
  const key = make('span', { className: `key line-${i % 4}`, title: line.about || line.name }, make('i'));
  key.append(make('bdi', { className: 'clip', textContent: line.name }), current);
  return { dot, current, key, line };
}

function markFrame(title, frame, picture, mark, parts, y) {
  mark.setAttribute('x1', xOf(frame));
  mark.setAttribute('x2', xOf(frame));
  const said = parts.map(({ dot, current, line }) => {
    const x = line.values[frame];
    current.textContent = line.write(x);
    dot.setAttribute('visibility', x === null ? 'hidden' : 'visible');
    if (x !== null) {
      dot.setAttribute('cx', xOf(frame));
      dot.setAttribute('cy', y(x));
    }
    return `${line.name} ${line.write(x)}`;
  });
  picture.setAttribute('aria-label', `${title}, frame ${run.frames[frame].frame}: ${said.join(', ')}`);
}

function drawable(lines) {
  return lines.filter((line) => line.values.some((x) => x !== null));
}

/** Losses together, shares together, whatever else is measured on its own. */
function metricCharts() {
  const names = [...new Set(run.frames.flatMap((frame) => Object.keys(frame.metrics)))];
  const values = (name) => run.frames.map(({ metrics }) => (Object.hasOwn(metrics, name) ? metrics[name] : null));
  const isShare = (numbers) => numbers.every((x) => x === null || (x >= 0 && x <= 1));
  const lines = drawable(names.map((name) => ({ name, values: values(name), write: number, share: isShare(values(name)) })));
  const isCheck = (line) => ['road', 'road_centre', 'road_random'].includes(line.name);
  const checks = lines.filter(isCheck).map((line) => ({ ...line, share: false }));
  const isLoss = (line) => /loss/i.test(line.name);
  const losses = lines.filter(isLoss).map((line) => ({ ...line, share: false }));
  const rest = lines.filter((line) => !isLoss(line) && !isCheck(line));
  const shares = rest.filter((line) => line.share);
  const others = rest.filter((line) => !line.share);
  const groups = [['Loss', losses], ['Metrics', shares], ['Faithfulness', checks], ...others.map((line) => ['Metric', [line]])];
  return groups.flatMap(([title, group]) => chunks(group, 4).map((few) => chart(title, few)));
}

function chunks(list, size) {
  return list.length ? [list.slice(0, size), ...chunks(list.slice(size), size)] : [];
}

/** A line for each of the columns that the run has, under the name that the page has for it. */
function linesOf(columns, values) {
  return columns.filter(has).map((column) => {
    const [name, about, write] = MEASURES[column];
    const share = write === percent || column.startsWith('similarity');
    return { name, about, write, share, percent: write === percent, values: values(column) };
  });
}

function charts(groups) {
  return groups
    .map(([title, lines]) => [title, drawable(lines)])
    .filter(([, lines]) => lines.length)
    .map(([title, lines]) => chart(title, lines));
}

/** The panel's maps, as means over its images. */
function attentionCharts(view) {
  const means = (...columns) => linesOf(columns, (column) => panelMean(column, view));
  return charts([
    ['Attention, mean of the panel', means('mask_share', 'border_share')],
    ['Change, mean of the panel', means('similarity_prev')],
  ]);
}

function itemCharts(view, item) {
  const over = (...columns) => linesOf(columns, (column) => overFrames(column, view, item));
  const names = [...new Set(run.frames.map((_, frame) => className('target', view, item, frame)).filter(Boolean))];
  return charts([
    [names.length === 1 ? `Probability of ${shorten(names[0], 30)}` : 'Probability', over('prob')],
    ['Attention', over('mask_share', 'border_share')],
    ['Change', over('similarity_prev', 'centroid_shift')],
    ['Loss', over('loss')],
  ]);
}
