// What is shown, kept in the page's address, so that reloading (or sending the link) keeps the view.

/** In a notebook the page is text inside of a frame: its address is not its own, and there is nothing to load again. */
const framed = location.protocol === 'about:';

const SORTS = [
  ['panel', 'panel order', null, () => 0],
  ['change', 'change since the frame before', 'similarity_prev', (x) => x],
  ['shift', 'shift of the centre', 'centroid_shift', (x) => -x],
  ['drift', 'change since the first frame', 'similarity_first', (x) => x],
  ['mask', 'mask share, least first', 'mask_share', (x) => x],
  ['border', 'border share, most first', 'border_share', (x) => -x],
  ['loss', 'loss, highest first', 'loss', (x) => -x],
].filter(([, , column]) => !column || has(column));

const THEMES = ['auto', 'light', 'dark'];
const labels = [...new Set(run.panel.map((entry) => entry.label))];
const findings = run.findings || [];
const kinds = [...new Set(findings.map((finding) => finding.kind))];

const DEFAULTS = {
  frame: latestFrame,
  layer: Math.max(0, run.layers.length - 1),
  cls: 0,
  cmap: run.defaults.cmap,
  alpha: run.defaults.alpha,
  threshold: 0,
  scale: 'map',
  outline: false,
  heat: true,
  label: '',
  answer: '',
  finding: '',
  sort: 'panel',
  item: null,
  theme: 'auto',
};

const oneOf = (choices) => (text) => (choices.includes(text) ? text : undefined);
const between = (low, high) => (text) => (text >= low && text <= high && text.trim() ? Number(text) : undefined);
const place = (count) => (text) => (/^\d+$/.test(text) && Number(text) < count ? Number(text) : undefined);
const flag = (text) => (text === '1' || text === '0' ? text === '1' : undefined);

const READ = {
  frame: (text) => run.frames.map((frame) => String(frame.frame)).indexOf(text),
  layer: place(run.layers.length),
  cls: place(classCount),
  cmap: oneOf(Object.keys(run.cmaps)),
  alpha: between(0, 1),
  threshold: between(0, 0.95),
  scale: oneOf(['map', 'image', 'all']),
  outline: flag,
  heat: flag,
  label: (text) => (labels.includes(text) ? text : undefined),
  answer: oneOf(['right', 'wrong']),
  finding: (text) => (findingItems(text) ? text : undefined),
  sort: oneOf(SORTS.map(([name]) => name)),
  item: place(itemCount),
  theme: oneOf(THEMES),
};

const WRITE = { frame: (i) => run.frames[i].frame, outline: Number, heat: Number };

/** The images a finding filter lets through: 'any', 'kind:…' or the finding's place in the list. */
function findingItems(filter) {
  const chosen = findings.filter(
    (finding, i) => filter === 'any' || filter === `kind:${finding.kind}` || filter === String(i),
  );
  return chosen.length ? new Set(chosen.flatMap((finding) => finding.items)) : null;
}

function readAddress() {
  const found = { ...DEFAULTS };
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const known = Object.hasOwn(READ, name) ? READ[name](text) : undefined;
    if (known !== undefined && known !== -1) found[name] = known;
  }
  return found;
}

function address() {
  const changed = new URLSearchParams();
  for (const name of Object.keys(DEFAULTS)) {
    if (state[name] !== DEFAULTS[name]) changed.set(name, WRITE[name] ? WRITE[name](state[name]) : state[name]);
  }
  return changed.toString();
}

const state = readAddress();
const views = [];
let addressTimer = null;

/** Change what is shown; each view hears which names changed. */
function change(patch) {
  const changed = new Set(Object.keys(patch).filter((name) => patch[name] !== state[name]));
  if (!changed.size) return;
  Object.assign(state, patch);
  views.forEach((view) => view(changed));
  clearTimeout(addressTimer);
  addressTimer = setTimeout(writeAddress, 250);
}

function writeAddress() {
  clearTimeout(addressTimer);
  if (framed) return;
  const text = address();
  if (text !== location.hash.slice(1)) history.replaceState(null, '', text ? `#${text}` : location.pathname + location.search);
}

function showAll() {
  change({ label: '', answer: '', finding: '' });
}

addEventListener('hashchange', () => {
  if (location.hash !== '#panel') change(readAddress());
});

// Playing steps through the frames that have maps.

let playTimer = null;

function playing() {
  return playTimer !== null;
}

function pace() {
  return Math.min(700, Math.max(110, 12000 / Math.max(1, drawnFrames.length)));
}

function play() {
  const at = drawnFrames.indexOf(state.frame);
  const atEnd = state.frame >= latestFrame;
  playTimer = setInterval(playStep, pace());
  if (atEnd && at !== 0) change({ frame: drawnFrames[0] });
  views.forEach((view) => view(new Set(['playing'])));
}

function playStep() {
  const next = drawnFrames.find((frame) => frame > state.frame);
  if (next === undefined) pause();
  else change({ frame: next });
}

function pause() {
  if (!playing()) return;
  clearInterval(playTimer);
  playTimer = null;
  views.forEach((view) => view(new Set(['playing'])));
}

function togglePlay() {
  if (playing()) pause();
  else if (drawnFrames.length > 1) play();
}

function goTo(frame) {
  pause();
  change({ frame: Math.min(frameCount - 1, Math.max(0, frame)) });
}
