// The state of the page. It is kept in the address, so that reloading it (or sending the link) keeps the view.

/** In a notebook the page is text inside of a frame: its address is not its own, and there is nothing to load again. */
const framed = location.protocol === 'about:';

const SORTS = [
  ['panel', 'panel order', null, () => 0],
  ['change', 'like the frame before, least first', 'similarity_prev', (x) => x],
  ['shift', 'moved, most first', 'centroid_shift', (x) => -x],
  ['drift', 'like the first frame, least first', 'similarity_first', (x) => x],
  ['mask', 'inside the mask, least first', 'mask_share', (x) => x],
  ['border', 'on the border, most first', 'border_share', (x) => -x],
  ['loss', 'loss, highest first', 'loss', (x) => -x],
  ['prob', 'probability, least first', 'prob', (x) => x],
  ['evidence', 'attention in all, least first', 'evidence', (x) => x],
  ['entropy', 'spread, most first', 'entropy', (x) => -x],
].filter(([, , column]) => !column || has(column));
if (new Set(run.panel.map((entry) => entry.label)).size > 1) SORTS.push(['label', 'label', null, () => 0]);

/** How sure the prediction is. */
const SURE = { above: (x) => x >= 0.8, between: (x) => x >= 0.5 && x < 0.8, below: (x) => x < 0.5 };
const FILTERS = ['label', 'answer', 'sure', 'finding'];
const THEMES = ['auto', 'light', 'dark'];
const labels = [...new Set(run.panel.map((entry) => entry.label))];
const findings = run.findings || [];
const kinds = [...new Set(findings.map((finding) => finding.kind))];

const oneOf = (choices) => (text) => (choices.includes(text) ? text : undefined);
const between = (low, high) => (text) => (text >= low && text <= high && text.trim() ? Number(text) : undefined);
const place = (count) => (text) => (/^\d+$/.test(text) && Number(text) < count ? Number(text) : undefined);
const flag = (text) => (text === '1' || text === '0' ? text === '1' : undefined);
const frameNumbered = (text) => place(frameCount)(String(run.frames.findIndex((frame) => String(frame.frame) === text)));

/** One row for each thing that can be chosen: where it starts, how the address spells it (`read`, `write`), what follows
 * when it changes (the grid is put in another order, the maps are drawn, the captions written again), whether it has a
 * control of its own (an element with its name as id), and whether the large view has one, too (`large-` and its name). */
const SETTINGS = {
  frame: { first: latestFrame, read: frameNumbered, write: (i) => run.frames[i].frame, follow: 'arrange draw caption' },
  layer: { first: Math.max(0, run.layers.length - 1), read: place(run.layers.length), follow: 'arrange draw caption', control: true, large: true },
  cls: { first: 0, read: place(classCount), follow: 'arrange draw caption', control: true, large: true },
  cmap: { first: run.defaults.cmap, read: oneOf(Object.keys(run.cmaps)), follow: 'draw', control: true, large: true },
  alpha: { first: run.defaults.alpha, read: between(0, 1), follow: 'draw', control: true, large: true },
  threshold: { first: 0, read: between(0, 0.95), follow: 'draw', control: true },
  scale: { first: 'map', read: oneOf(['map', 'image', 'all']), follow: 'draw', control: true, large: true },
  outline: { first: false, read: flag, write: Number, follow: 'draw', control: true, large: true },
  heat: { first: true, read: flag, write: Number, follow: 'draw', control: true, large: true },
  label: { first: '', read: (text) => oneOf(labels)(text), follow: 'arrange', control: true },
  answer: { first: '', read: oneOf(['right', 'wrong']), follow: 'arrange', control: true },
  sure: { first: '', read: oneOf(Object.keys(SURE)), follow: 'arrange', control: true },
  finding: { first: '', read: (text) => (findingItems(text) ? text : undefined), follow: 'arrange', control: true },
  sort: { first: 'panel', read: oneOf(SORTS.map(([name]) => name)), follow: 'arrange caption', control: true },
  size: { first: 'medium', read: oneOf(['small', 'medium', 'large']), follow: '', control: true },
  item: { first: null, read: place(itemCount), follow: '' },
  theme: { first: 'auto', read: oneOf(THEMES), follow: '' },
};

/** Whether one of the names that changed has this consequence. */
function calls(changed, consequence) {
  return [...changed].some((name) => SETTINGS[name]?.follow.split(' ').includes(consequence));
}

/** The images a finding filter lets through: 'any', 'kind:…' or the finding's place in the list. */
function findingItems(filter) {
  const chosen = findings.filter(
    (finding, i) => filter === 'any' || filter === `kind:${finding.kind}` || filter === String(i),
  );
  return chosen.length ? new Set(chosen.flatMap((finding) => finding.items)) : null;
}

function readAddress() {
  const found = Object.fromEntries(Object.entries(SETTINGS).map(([name, { first }]) => [name, first]));
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const known = Object.hasOwn(SETTINGS, name) ? SETTINGS[name].read(text) : undefined;
    if (known !== undefined) found[name] = known;
  }
  return found;
}

function address() {
  const changed = new URLSearchParams();
  for (const [name, { first, write }] of Object.entries(SETTINGS)) {
    if (state[name] !== first) changed.set(name, write ? write(state[name]) : state[name]);
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
  change(Object.fromEntries(FILTERS.map((name) => [name, ''])));
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
