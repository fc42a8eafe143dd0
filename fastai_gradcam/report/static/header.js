// The head of the page: what the run is, notes on it, the story of a frame, the theme.

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

function showTheme() {
  if (state.theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  byId('theme').textContent = { auto: '◐ Auto', light: '☀ Light', dark: '☾ Dark' }[state.theme];
  byId('theme').setAttribute('aria-label', `Theme: ${state.theme}`);
}
