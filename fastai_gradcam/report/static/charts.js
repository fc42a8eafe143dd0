// Small line charts over the frames, with a mark at the current one.

const CHART = { width: 320, height: 104, left: 6, right: 34, top: 8, bottom: 16 };

function svg(tag, attributes = {}, text = '') {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, setting] of Object.entries(attributes)) element.setAttribute(name, setting);
  if (text) element.textContent = text;
  return element;
}

/** Round numbers around what the lines reach; shares always get 0 to 1. */
function domain(lines) {
  const known = lines.flatMap((line) => line.values).filter((x) => x !== null);
  const low = Math.min(0, ...known);
  const high = Math.max(...known);
  if (high <= 1 && high > 0.5 && low >= 0) return [0, 1];
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

/** The line, broken where a number is missing in between frames that were drawn. */
function linePath(values, y) {
  let path = '';
  let pen = 'M';
  values.forEach((x, frame) => {
    if (x === null) {
      if (!run.frames[frame].note) pen = 'M';
      return;
    }
    path += `${pen}${xOf(frame).toFixed(1)} ${y(x).toFixed(1)}`;
    pen = 'L';
  });
  return path;
}

/** `lines` are `{ name, values, about }`; gives the figure and a function that marks a frame. */
function chart(title, lines) {
  const [low, high] = domain(lines);
  const inner = CHART.height - CHART.top - CHART.bottom;
  const y = (x) => CHART.top + (1 - (x - low) / (high - low)) * inner;
  const picture = svg('svg', { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: 'img', 'aria-label': title });
  drawAxes(picture, low, high, y);
  const mark = svg('line', { class: 'mark', y1: CHART.top, y2: CHART.height - CHART.bottom });
  picture.append(mark);
  const parts = lines.map((line, i) => drawLine(picture, line, i, y));
  picture.addEventListener('click', (event) => goTo(frameAt(event, picture)));
  const heading = make('figcaption', {}, make('span', { className: 'chart-title', textContent: title }));
  heading.append(...parts.map((part) => part.key));
  const element = make('figure', { className: 'chart' }, heading, picture);
  return { element, update: (frame) => markFrame(frame, mark, parts, y) };
}

function drawAxes(picture, low, high, y) {
  for (const x of [low, (low + high) / 2, high]) {
    picture.append(svg('line', { class: 'rule', x1: CHART.left, x2: CHART.width - CHART.right, y1: y(x), y2: y(x) }));
    picture.append(svg('text', { x: CHART.width - CHART.right + 5, y: y(x) + 3.5 }, String(Number(x.toPrecision(3)))));
  }
  run.frames.forEach(({ fit }, frame) => {
    if (!frame || fit === run.frames[frame - 1].fit) return;
    const x = xOf(frame - 0.5);
    picture.append(svg('line', { class: 'fit', x1: x, x2: x, y1: CHART.top, y2: CHART.height - CHART.bottom }));
    picture.append(svg('text', { x: x + 3, y: CHART.height - 4 }, `fit ${fit}`));
  });
  picture.append(svg('text', { x: CHART.left, y: CHART.height - 4 }, `frame ${run.frames[0].frame}`));
  if (frameCount > 1) {
    const last = run.frames[frameCount - 1].frame;
    picture.append(svg('text', { x: CHART.width - CHART.right, y: CHART.height - 4, 'text-anchor': 'end' }, `${last}`));
  }
}

function drawLine(picture, line, i, y) {
  picture.append(svg('path', { class: `line line-${i % 4}`, d: linePath(line.values, y) }));
  const dot = svg('circle', { class: `dot line-${i % 4}`, r: 3.2 });
  picture.append(dot);
  const current = make('span', { className: 'chart-value' });
  const key = make('span', { className: `key line-${i % 4}`, title: line.about || line.name }, make('i'));
  key.append(make('bdi', { className: 'clip', textContent: line.name }), current);
  return { dot, current, key, values: line.values };
}

function markFrame(frame, mark, parts, y) {
  mark.setAttribute('x1', xOf(frame));
  mark.setAttribute('x2', xOf(frame));
  for (const { dot, current, values } of parts) {
    const x = values[frame];
    current.textContent = number(x);
    dot.setAttribute('visibility', x === null ? 'hidden' : 'visible');
    if (x === null) continue;
    dot.setAttribute('cx', xOf(frame));
    dot.setAttribute('cy', y(x));
  }
}

function drawable(lines) {
  return lines.filter((line) => line.values.some((x) => x !== null));
}

/** Losses together, shares together, whatever else is measured on its own. */
function metricCharts() {
  const names = [...new Set(run.frames.flatMap((frame) => Object.keys(frame.metrics)))];
  const lines = drawable(names.map((name) => ({ name, values: run.frames.map(({ metrics }) => (Object.hasOwn(metrics, name) ? metrics[name] : null)) })));
  const isLoss = (line) => /loss/i.test(line.name);
  const isShare = (line) => line.values.every((x) => x === null || (x >= 0 && x <= 1));
  const losses = lines.filter(isLoss);
  const shares = lines.filter((line) => !isLoss(line) && isShare(line));
  const others = lines.filter((line) => !isLoss(line) && !isShare(line));
  const groups = [['Loss', losses], ['Metrics', shares], ...others.map((line) => ['Metric', [line]])];
  return groups.flatMap(([title, group]) => chunks(group, 4).map((few) => chart(title, few)));
}

function chunks(list, size) {
  return list.length ? [list.slice(0, size), ...chunks(list.slice(size), size)] : [];
}

function lineOf(column, name, values) {
  return has(column) ? [{ name, about: MEASURES[column][1], values: values() }] : [];
}

function turned(line) {
  return { ...line, values: line.values.map(unlike) };
}

function charts(groups) {
  return groups
    .map(([title, lines]) => [title, drawable(lines)])
    .filter(([, lines]) => lines.length)
    .map(([title, lines]) => chart(title, lines));
}

/** What the panel's maps did, as means over its images. */
function attentionCharts(view) {
  const mean = (column, name) => lineOf(column, name, () => panelMean(column, view));
  return charts([
    ['Attention, mean of the panel', [...mean('mask_share', 'inside the mask'), ...mean('border_share', 'on the border')]],
    ['Change since the frame before', mean('similarity_prev', '1 − similarity').map(turned)],
  ]);
}

function itemCharts(view, item) {
  const over = (column, name) => lineOf(column, name, () => overFrames(column, view, item));
  return charts([
    ['Probability', over('prob', 'of the class explained')],
    ['Attention', [...over('mask_share', 'inside the mask'), ...over('border_share', 'on the border')]],
    ['Change', [...over('similarity_prev', '1 − similarity').map(turned), ...over('centroid_shift', 'shift of centre')]],
    ['Loss', over('loss', 'of this image')],
  ]);
}
