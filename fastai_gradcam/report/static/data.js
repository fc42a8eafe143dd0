// The run as it was written into the page, and how to look things up in it.

document.documentElement.classList.add('js');

const run = JSON.parse(document.getElementById('run-data').textContent);
const itemCount = run.panel.length;
const frameCount = run.frames.length;
const classCount = run.history.classes.length;
const drawnFrames = run.frames.map((frame, i) => (frame.note ? -1 : i)).filter((i) => i >= 0);
const latestFrame = drawnFrames.length ? drawnFrames[drawnFrames.length - 1] : Math.max(0, frameCount - 1);

/** Each number: its one name on this page, what it means, and how it is written. */
const MEASURES = {
  prob: ['Probability', 'of the class explained, as the model gives it', percent],
  loss: ['Loss', 'of this image; 0 is best', number],
  mask_share: ['Inside the mask', 'share of the attention that lies on the object', percent],
  border_share: ['On the border', 'share of the attention in the outermost ring of cells', percent],
  concentration: ['Concentration', 'share of the attention in the strongest tenth of the cells', percent],
  entropy: ['Spread', '0: all attention in one cell, 1: the same in each (entropy)', number],
  evidence: ['Attention in all', 'sum of the raw map; compare it before you compare brightness (evidence)', number],
  negative_share: ['Cut off', 'share of the map that speaks against the class and is not shown', percent],
  similarity_prev: ['Like the frame before', 'correlation of the two maps: 1 the same, 0 unrelated', number],
  similarity_first: ['Like the first frame', 'correlation of the two maps: 1 the same, 0 unrelated', number],
  iou_prev: ['Overlap with before', 'of the strongest fifth of the cells with those of the frame before', percent],
  centroid_shift: ['Moved', 'how far the centre of the attention moved since the frame before, as a share of the picture', percent],
  centroid_x: ['Centre, across', '0: left edge, 1: right edge', number],
  centroid_y: ['Centre, down', '0: top edge, 1: bottom edge', number],
  pointing_hit: ['Peak in the mask', 'whether the strongest point lies on the object', (x) => (x === null ? '–' : ['no', 'yes'][x])],
};

function inNumbers(column, x) {
  return MEASURES[column][2](x);
}

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
  return x === null || x === undefined ? '–' : `${Math.round(x * 100)}%`;
}

function frameTitle(frame) {
  return run.frames[frame].name;
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

/** A name with its middle left out: long names differ at their ends. */
function shorten(text, length = 60) {
  const characters = Array.from(text);
  if (characters.length <= length) return text;
  const end = Math.floor((length - 1) / 2);
  return `${characters.slice(0, length - 1 - end).join('')}…${characters.slice(-end).join('')}`;
}

/** A name in two parts, the first of which gives way where there is no room: all of the text is there. */
function flexible(text) {
  const letters = typeof Intl.Segmenter === 'function' ? Array.from(new Intl.Segmenter().segment(text), (one) => one.segment) : Array.from(text);
  const end = letters.length > 16 ? 8 : 0;
  const parts = [letters.slice(0, letters.length - end).join(''), letters.slice(letters.length - end).join('')];
  return parts.filter(Boolean).map((part, i) => make('span', { className: i ? 'end' : 'clip', textContent: part }));
}

function byId(id) {
  return document.getElementById(id);
}
