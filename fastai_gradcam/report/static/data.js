// The run as it was written into the page, and how to look things up in it.

const run = JSON.parse(document.getElementById('run-data').textContent);
const itemCount = run.panel.length;
const frameCount = run.frames.length;
const classCount = run.history.classes.length;
const drawnFrames = run.frames.map((frame, i) => (frame.note ? -1 : i)).filter((i) => i >= 0);
const latestFrame = drawnFrames.length ? drawnFrames[drawnFrames.length - 1] : Math.max(0, frameCount - 1);

const MEASURES = {
  prob: ['Probability', 'of the class that is explained'],
  loss: ['Loss', 'of this image'],
  mask_share: ['Mask share', 'share of the evidence that lies inside the mask'],
  border_share: ['Border share', 'share of the evidence in the outermost ring of cells'],
  concentration: ['Concentration', 'share of the evidence in the strongest tenth of the cells'],
  entropy: ['Entropy', '0: one cell, 1: spread evenly'],
  evidence: ['Evidence', 'sum of the raw map'],
  negative_share: ['Negative share', 'share of the map that speaks against the class and is cut off'],
  similarity_prev: ['Like frame before', 'correlation with the map of the frame before'],
  similarity_first: ['Like first frame', 'correlation with the map of the first frame'],
  iou_prev: ['Overlap with before', 'of the strongest fifth of the cells with the frame before'],
  centroid_shift: ['Shift', 'how far the centre of the evidence moved since the frame before'],
  centroid_x: ['Centre, across', '0: left edge, 1: right edge'],
  centroid_y: ['Centre, down', '0: top edge, 1: bottom edge'],
  pointing_hit: ['Peak in mask', 'whether the strongest point lies inside the mask'],
};

function has(column) {
  return Boolean(run.history.columns[column]);
}

/** Where the numbers of a frame start in a flat column; the images follow one by one. Columns that are the same in every
 * layer hold one layer alone, so places count round and round. */
function rowStart(view, frame) {
  return ((view.layer * classCount + view.cls) * frameCount + frame) * itemCount;
}

function value(column, view, item, frame = view.frame) {
  const values = run.history.columns[column];
  return values ? values[(rowStart(view, frame) + item) % values.length] : null;
}

function className(column, view, item, frame = view.frame) {
  const at = value(column, view, item, frame);
  return at === null ? '' : run.history.names[at];
}

function overFrames(column, view, item) {
  return run.frames.map((_, frame) => value(column, view, item, frame));
}

const means = new Map();

/** The mean over the panel for each frame; images without the number do not count. */
function panelMean(column, view) {
  const key = `${column}/${view.layer}/${view.cls}`;
  if (!means.has(key)) means.set(key, run.frames.map((_, frame) => frameMean(column, view, frame)));
  return means.get(key);
}

function frameMean(column, view, frame) {
  const values = run.history.columns[column];
  const start = rowStart(view, frame) % values.length;
  const known = values.slice(start, start + itemCount).filter((x) => x !== null);
  return known.length ? known.reduce((sum, x) => sum + x, 0) / known.length : null;
}

function unlike(similarity) {
  return similarity === null ? null : 1 - similarity;
}

function bytes(text) {
  const characters = atob(text);
  const out = new Uint8Array(characters.length);
  for (let i = 0; i < out.length; i += 1) out[i] = characters.charCodeAt(i);
  return out;
}

const unpacked = new Map();

function frameCells(layer, frame) {
  const key = `${layer}/${frame}`;
  if (!unpacked.has(key)) unpacked.set(key, bytes(run.maps[layer].cells[frame]));
  return unpacked.get(key);
}

/** One raw map: `cells` from 0 to 255, where 255 stands for `peak`; null where there is none. */
function mapOf(view, item, frame = view.frame) {
  const { height, width, cells, peaks } = run.maps[view.layer];
  if (!cells[frame]) return null;
  const classes = peaks[frame].length / itemCount;
  const place = item * classes + Math.min(view.cls, classes - 1);
  const size = height * width;
  const all = frameCells(view.layer, frame);
  return { height, width, peak: peaks[frame][place], cells: all.subarray(place * size, (place + 1) * size) };
}

function number(x, digits = 3) {
  if (x === null || x === undefined) return '–';
  if (x === 0 || Number.isInteger(x)) return String(x);
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-4) return x.toExponential(1);
  return size >= 1 ? String(Number(x.toPrecision(digits))) : x.toFixed(digits);
}

function percent(x) {
  return x === null ? '–' : `${Math.round(x * 100)}%`;
}

const severalFits = new Set(run.frames.map((frame) => frame.fit)).size > 1;

function frameTitle(frame) {
  const { epoch, fit } = run.frames[frame];
  if (epoch < 0) return 'before training';
  return severalFits ? `fit ${fit} · epoch ${epoch}` : `epoch ${epoch}`;
}

/** An element with properties, attributes and children; text only ever becomes text. */
function make(tag, { attributes = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, text] of Object.entries(attributes)) element.setAttribute(name, text);
  element.append(...children);
  return element;
}

/** A name from the user's folders: it keeps its own direction and does not turn the text around it. */
function named(text) {
  return make('bdi', { textContent: text });
}

function byId(id) {
  return document.getElementById(id);
}
