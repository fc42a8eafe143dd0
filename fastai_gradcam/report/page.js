// The rest of the page: header, slider, controls, findings and keys.

function fillHeader() {
  const { name, arch, status, updated } = run.info;
  byId('name').textContent = name;
  byId('name').title = name;
  const method = run.settings.method || '';
  const parts = [arch, method, `${itemCount} images`, `${frameCount} frames`, run.layers.length === 1 ? `layer ${run.layers[0]}` : ''];
  byId('summary').replaceChildren(...parts.filter(Boolean).flatMap((part, i) => [i ? ' · ' : '', named(part)]));
  byId('status').textContent = status;
  byId('status').dataset.status = status;
  byId('status').title = updated ? `last written ${updated}` : '';
  byId('running').hidden = status !== 'running';
  byId('reload').addEventListener('click', reload);
  byId('made').replaceChildren('Written ', updated.replace('T', ' ').slice(0, 16), ' by fastai_gradcam ', run.versions.fastai_gradcam || '');
  fillPairs('settings', run.settings);
  fillPairs('versions', run.versions);
}

/** What an address would do: a link to a part of the page leads to the notebook's, and reloading to the same text. */
function fitIntoFrame() {
  byId('reload').hidden = true;
  byId('running').firstElementChild.textContent = 'Training was still running when this page was made. Run the cell again for newer frames.';
  document.querySelector('.skip').addEventListener('click', (event) => {
    event.preventDefault();
    byId('panel').focus();
  });
}

function reload() {
  writeAddress();
  location.reload();
}

function fillPairs(id, pairs) {
  const rows = Object.entries(pairs).flatMap(([name, text]) => [make('dt', { textContent: name }), make('dd', { textContent: text, dir: 'auto' })]);
  byId(id).replaceChildren(...rows);
  byId(id).parentElement.hidden = !rows.length;
}

function fillNotes() {
  const frames = run.frames.filter((frame) => frame.note).map((frame) => `Frame ${frame.frame} ${frame.note}`);
  const notes = [...frames, ...run.notes];
  if (!frameCount) notes.push('This run has no frames yet.');
  const list = make('ul', { className: 'plain' }, ...notes.map((note) => make('li', { textContent: note, dir: 'auto' })));
  const folded = make('details', {}, make('summary', { textContent: `${notes.length} notes on this run` }), list);
  byId('notes').replaceChildren(notes.length > 3 ? folded : list);
  byId('notes').hidden = !notes.length;
}

function fillTicks() {
  const at = (frame) => `${frameCount > 1 ? (frame / (frameCount - 1)) * 100 : 50}%`;
  const marks = run.frames.flatMap((frame, i) => {
    if (frame.note) return [['failed', i]];
    return i && frame.fit !== run.frames[i - 1].fit ? [['fit', i]] : [];
  });
  for (const [kind, frame] of marks) {
    const mark = make('i', { className: kind, textContent: kind === 'failed' ? '×' : '' });
    mark.style.left = at(frame);
    byId('ticks').append(mark);
  }
}

function showFrame() {
  const frame = run.frames[state.frame];
  byId('frame').value = state.frame;
  if (!frame) return;
  byId('frame').setAttribute('aria-valuetext', `frame ${frame.frame}, ${frameTitle(state.frame)}`);
  byId('when').textContent = `Frame ${frame.frame} of ${run.frames[frameCount - 1].frame} · ${frameTitle(state.frame)}`;
  byId('when').setAttribute('aria-live', playing() ? 'off' : 'polite');
  const scores = Object.entries(frame.metrics).slice(0, 4);
  byId('scores').replaceChildren(...scores.map(([name, x]) => make('span', {}, named(name), ` ${number(x)}`)));
  byId('missing').hidden = !frame.note;
  byId('missing').textContent = frame.note ? `Frame ${frame.frame} ${frame.note}` : '';
}

function showPlay() {
  for (const id of ['play', 'large-play']) {
    byId(id).setAttribute('aria-label', playing() ? 'Pause' : 'Play');
    byId(id).classList.toggle('playing', playing());
    byId(id).disabled = drawnFrames.length < 2;
  }
}

/** The frame in a sentence or two, next to the first one. */
function tellStory() {
  const frame = state.frame;
  const first = drawnFrames[0];
  const parts = [];
  const right = has('correct') ? rightAnswers(frame) : null;
  if (right) parts.push('Right on ', strong(right[0]), ` of ${right[1]} images. `);
  const column = ['mask_share', 'border_share'].find((name) => has(name) && panelMean(name, state)[frame] !== null);
  if (column) parts.push(...tellPlace(column, frame, first));
  if (!parts.length && run.frames[frame]?.note) parts.push('This frame has no numbers. ');
  const moved = has('similarity_prev') ? panelMean('similarity_prev', state) : [];
  const least = moved.reduce((best, x, i) => (x !== null && (best < 0 || x < moved[best]) ? i : best), -1);
  if (least >= 0) parts.push('Attention changed most in ', link(`frame ${run.frames[least].frame}`, '', () => jump({ frame: least })), '.');
  byId('story').replaceChildren(...parts);
  byId('story').hidden = !frameCount;
}

function rightAnswers(frame) {
  const known = run.panel.map((_, item) => value('correct', state, item, frame)).filter((x) => x !== null);
  return known.length ? [known.filter(Boolean).length, known.length] : null;
}

function tellPlace(column, frame, first) {
  const shares = panelMean(column, state);
  const where = column === 'mask_share' ? tellMasks() : tellBorder();
  const parts = [strong(percent(shares[frame])), ` of the attention lies ${where}`];
  if (frame !== first && shares[first] !== null) parts.push(`; ${frameTitle(first)} it was ${percent(shares[first])}`);
  return [...parts, '. '];
}

/** A share says little without what it would be by chance. */
function tellMasks() {
  const areas = run.panel.map((entry) => entry.mask_area).filter((area) => area !== null);
  const mean = areas.reduce((sum, area) => sum + area, 0) / areas.length;
  return areas.length ? `inside the masks, which cover ${percent(mean)} of the pictures` : 'inside the masks';
}

function tellBorder() {
  return `on the border, which is ${percent(run.maps[state.layer].ring)} of the map`;
}

function strong(text) {
  return make('b', { textContent: text });
}

// Controls: an element with the id of the state it sets.

function choices(id, pairs) {
  byId(id).replaceChildren(...pairs.map(([value_, text]) => make('option', { value: value_, textContent: text })));
}

/** A name with its middle left out: long names differ at their ends. */
function shorten(text, length = 60) {
  const characters = Array.from(text);
  if (characters.length <= length) return text;
  const end = Math.floor((length - 1) / 2);
  return `${characters.slice(0, length - 1 - end).join('')}…${characters.slice(-end).join('')}`;
}

function fillControls() {
  choices('cmap', Object.keys(run.cmaps).map((name) => [name, name]));
  choices('layer', run.layers.map((name, i) => [i, shorten(name)]));
  choices('cls', run.history.classes.map((name, i) => [i, name === null ? `class ${i + 1} of each image` : shorten(name)]));
  choices('label', [['', 'all labels'], ...labels.filter(Boolean).map((name) => [name, shorten(name)])]);
  choices('sort', SORTS.map(([name, text]) => [name, text]));
  choices('finding', [
    ['', 'all images'],
    ['any', 'any finding'],
    ...kinds.map((kind) => [`kind:${kind}`, shorten(inWords(kind))]),
    ...findings.map((finding, i) => [String(i), shorten(`${i + 1}. ${[inWords(finding.kind), finding.label].filter(Boolean).join(': ')}`)]),
  ]);
  byId('layer-control').hidden = run.layers.length < 2;
  byId('cls-control').hidden = classCount < 2;
  byId('finding-control').hidden = !findings.length;
  byId('label').closest('label').hidden = !labels.some(Boolean);
  for (const id of MIRRORED) {
    byId(`large-${id}`).replaceChildren(...[...byId(id).options].map((option) => option.cloneNode(true)));
    byId(`large-${id}`).closest('label').hidden = byId(id).closest('label').hidden;
  }
  byId('outline-control').hidden = !run.panel.some((entry) => entry.mask);
  byId('answer').closest('label').hidden = !has('correct');
}

const NUMERIC = ['alpha', 'threshold', 'layer', 'cls'];
/** What the large view offers, too; there its elements are called `large-…`. */
const MIRRORED = ['layer', 'cls', 'cmap', 'scale'];
const CHOSEN = ['cmap', 'alpha', 'threshold', 'scale', 'layer', 'cls', 'label', 'answer', 'finding', 'sort'];

function listenToControls() {
  const chosen = (id) => ({ target }) => change({ [id]: NUMERIC.includes(id) ? Number(target.value) : target.value });
  for (const id of CHOSEN) byId(id).addEventListener('input', chosen(id));
  for (const id of MIRRORED) byId(`large-${id}`).addEventListener('input', chosen(id));
  byId('outline').addEventListener('change', ({ target }) => change({ outline: target.checked }));
  byId('frame').addEventListener('input', ({ target }) => goTo(Number(target.value)));
  byId('play').addEventListener('click', togglePlay);
  byId('clear').addEventListener('click', showAll);
  byId('theme').addEventListener('click', () => change({ theme: THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length] }));
}

function showControls() {
  for (const id of CHOSEN) byId(id).value = state[id];
  for (const id of MIRRORED) byId(`large-${id}`).value = state[id];
  byId('outline').checked = state.outline;
  byId('heat').checked = state.heat;
  byId('alpha-now').textContent = `${Math.round(state.alpha * 100)} %`;
  byId('threshold-now').textContent = state.threshold ? `${Math.round(state.threshold * 100)} %` : 'off';
  const filtered = ['label', 'answer', 'finding'].filter((name) => state[name]).length;
  byId('active').textContent = filtered ? `· ${filtered} filter${filtered > 1 ? 's' : ''} on` : '';
  drawLegend();
}

function drawLegend() {
  const out = new ImageData(256, 1);
  for (let i = 0; i < 256; i += 1) {
    const hidden = i / 255 < state.threshold;
    out.data.set(colours[state.cmap].subarray(i * 3, i * 3 + 3), i * 4);
    out.data[i * 4 + 3] = hidden ? 0 : 255;
  }
  byId('legend').getContext('2d').putImageData(out, 0, 0);
}

function showTheme() {
  if (state.theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  byId('theme').textContent = { auto: '◐ Auto', light: '☀ Light', dark: '☾ Dark' }[state.theme];
  byId('theme').setAttribute('aria-label', `Theme: ${state.theme}`);
}

// Curves and findings.

let pageCharts = [];

function fillCurves() {
  pageCharts = frameCount ? [...attentionCharts(state), ...metricCharts()] : [];
  byId('curves').replaceChildren(...pageCharts.map((one) => one.element));
  byId('curves').closest('section').hidden = !pageCharts.length;
}

const KINDS = {
  non_finite: 'Maps that are not finite',
  shortcut: 'A shortcut, perhaps',
  outside: 'Looks outside the object',
  corner: 'Looks into one corner',
  border: 'Looks at the border',
  empty: 'Empty maps',
  left_object: 'Attention left the object',
  wrong: 'Wrong, and where it looked',
  unsettled: 'Attention still moves',
};

function inWords(kind) {
  return Object.hasOwn(KINDS, kind) ? KINDS[kind] : kind.charAt(0).toUpperCase() + kind.slice(1).replaceAll('_', ' ');
}

/** A severity from 0 to 1 as a word; one that is a word already stays as it is. */
function severityInWords(severity) {
  const size = Number(severity);
  if (!severity || Number.isNaN(size)) return severity;
  if (size >= 0.66) return 'high';
  return size >= 0.33 ? 'medium' : 'low';
}

function fillFindings() {
  byId('findings-section').hidden = !run.findings;
  if (!run.findings) return;
  const cards = findings.map(findingCard);
  const rest = cards.slice(5);
  byId('findings').replaceChildren(...cards.slice(0, 5));
  if (!cards.length) byId('findings').append(make('p', { className: 'quiet', textContent: 'Nothing stood out.' }));
  if (rest.length) byId('findings').append(make('details', {}, make('summary', { textContent: `${rest.length} more` }), ...rest));
}

function findingCard(finding, i) {
  const frame = run.frames.findIndex((one) => one.frame === finding.frame);
  const layer = run.layers.indexOf(finding.layer);
  const there = { ...(frame >= 0 && { frame }), ...(layer >= 0 && { layer }) };
  const links = make('p', { className: 'links' });
  if (finding.items.length) links.append(link('only these', `Show only the images of finding ${i + 1}`, () => jump({ ...there, finding: String(i) })));
  if (frame >= 0) links.append(link(`frame ${finding.frame}`, `Go to frame ${finding.frame}`, () => jump(there)));
  links.append(...finding.items.slice(0, 6).map((item) => itemLink(item, there)));
  if (finding.items.length > 6) links.append(make('span', { className: 'quiet', textContent: `and ${finding.items.length - 6} more` }));
  const heading = make('h3', {}, inWords(finding.kind));
  if (finding.severity) heading.append(make('span', { className: 'severity', textContent: severityInWords(finding.severity), title: `severity ${finding.severity}` }));
  const text = make('p', { dir: 'auto', textContent: finding.text });
  return make('article', { className: 'finding', attributes: { 'data-severity': severityInWords(finding.severity) } }, heading, text, links);
}

function link(text, title, act) {
  const button = make('button', { type: 'button', className: 'link', textContent: text, title });
  button.addEventListener('click', act);
  return button;
}

function itemLink(item, there) {
  const { label, name: file, image, width, height } = run.panel[item];
  const button = link('', label || file, () => jump({ ...there, item }));
  button.className = 'thumb';
  button.setAttribute('aria-label', `Enlarge ${inSpeech(item)}`);
  if (image) button.append(make('img', { src: image, alt: '', width, height }));
  else button.append(String(item + 1));
  return button;
}

function jump(patch) {
  pause();
  change(patch);
  if (state.item === null) bringIntoSight();
}

/** On a phone the images are far from what leads to them. */
function bringIntoSight() {
  const { top, bottom } = byId('panel').getBoundingClientRect();
  const bar = document.querySelector('.transport').offsetHeight;
  if (Math.min(bottom, innerHeight) - Math.max(top, bar) >= Math.min(160, bottom - top)) return;
  const from = document.querySelector('.count').getBoundingClientRect().top;
  scrollBy({ top: from - bar - 8 });
}

// Keys.

function ownsKey(target, key) {
  if (target.matches('select, input[type=text]')) return true;
  if (target.matches('input[type=range]')) return !['frame', 'large-frame'].includes(target.id) && key !== ' ';
  return key === ' ' && target.matches('button, summary, a, input[type=checkbox]');
}

const KEYS = {
  ArrowLeft: () => goTo(state.frame - 1),
  ArrowRight: () => goTo(state.frame + 1),
  Home: () => goTo(0),
  End: () => goTo(frameCount - 1),
  ' ': togglePlay,
  h: () => change({ heat: !state.heat }),
};
const LARGE_KEYS = { n: () => stepImage(1), p: () => stepImage(-1) };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || ownsKey(event.target, event.key)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // Caps Lock makes no difference
  const act = KEYS[key] || (state.item !== null && LARGE_KEYS[key]);
  if (!act) return;
  event.preventDefault();
  act();
}

views.push((changed) => {
  if (changed.has('frame') || changed.has('playing')) showFrame();
  if (changed.has('playing')) showPlay();
  if (changed.has('theme')) showTheme();
  if (['frame', 'layer', 'cls'].some((name) => changed.has(name))) tellStory();
  if (changed.has('layer') || changed.has('cls')) fillCurves();
  if (['frame', 'layer', 'cls'].some((name) => changed.has(name))) pageCharts.forEach((one) => one.update(state.frame));
  if (!changed.has('frame') || changed.size > 1) showControls();
});

function start() {
  byId('frame').max = Math.max(0, frameCount - 1);
  if (framed) fitIntoFrame();
  byId('tools').open = matchMedia('(min-width: 720px)').matches;
  fillHeader();
  fillNotes();
  fillTicks();
  fillControls();
  listenToControls();
  showTheme();
  showControls();
  showFrame();
  tellStory();
  showPlay();
  fillFindings();
  fillCurves();
  pageCharts.forEach((one) => one.update(state.frame));
  addEventListener('keydown', onKey);
  startGrid();
  startLarge();
}

start();
