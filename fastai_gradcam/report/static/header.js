// The head of the page: what the run is, notes on it, the story of a frame, the theme.

function fillHeader() {
  const { name, arch, status, updated } = run.info;
  byId('name').textContent = name;
  byId('name').title = name;
  const method = run.settings.method || '';
  const parts = [arch, method, `${itemCount} validation images${run.panel[0]?.depth ? `, 4 of ${run.panel[0].depth} slices each` : ''}`, `${frameCount} frames`, run.layers.length === 1 ? `layer ${run.layers[0]}` : ''];
  byId('summary').replaceChildren(...parts.filter(Boolean).flatMap((part, i) => [i ? ' · ' : '', named(part)]));
  byId('status').textContent = status;
  byId('status').dataset.status = status;
  byId('status').title = updated ? `last written ${updated}` : '';
  byId('running').hidden = status !== 'running';
  byId('reload').addEventListener('click', reload);
  byId('made').replaceChildren('Written ', updated.replace('T', ' ').slice(0, 16), ' by fastai_gradcam ', run.versions.fastai_gradcam || '');
  fillPairs('settings', run.settings);
  fillPairs('versions', run.versions);
  const meanings = Object.entries(MEASURES).filter(([column]) => has(column)).map(([, [word, about]]) => [word, about]);
  const metrics = ['the epoch\'s, of the whole training or validation set, as the progress table had them'];
  const checks = ['by how much the hottest pixels of the panel\'s maps matter more to the predicted class than the coldest, from −0.5 to 0.5 (ROAD); beside it the same of a blob in the middle and of a random map'];
  const checked = run.frames.some((frame) => Object.hasOwn(frame.metrics, 'road'));
  fillPairs('meanings', Object.fromEntries([...meanings, ['Losses and metrics', metrics], ...(checked ? [['road', checks]] : [])]));
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
  const { frame } = state;
  const parts = [];
  const right = has('correct') ? rightAnswers(frame) : null;
  if (right) parts.push('Right on ', strong(right[0]), ` of the panel's ${right[1]} images. `);
  parts.push(...tellPlace(frame));
  if (!parts.length && run.frames[frame]?.note) parts.push('This frame has no numbers. ');
  const moved = has('similarity_prev') ? panelMean('similarity_prev', state) : [];
  const least = moved.reduce((best, x, i) => (x !== null && (best < 0 || x < moved[best]) ? i : best), -1);
  if (least >= 0) parts.push('Attention changed most in ', link(`frame ${run.frames[least].frame}`, '', () => jump({ frame: least })), '. ');
  if (findings.length) parts.push(link(`${findings.length} finding${findings.length > 1 ? 's' : ''}`, '', showFindings), '.');
  byId('story').replaceChildren(...parts);
  byId('story').hidden = !frameCount;
}

function showFindings() {
  byId('findings-section').scrollIntoView({ block: 'start' });
}

function rightAnswers(frame) {
  const known = run.panel.map((_, item) => value('correct', state, item, frame)).filter((x) => x !== null);
  return known.length ? [known.filter(Boolean).length, known.length] : null;
}

/** A share says little without what it would be by chance; attention on the border is told of where it is beyond it. */
function tellPlace(frame) {
  const [inside, border] = ['mask_share', 'border_share'].map((column) => (has(column) ? panelMean(column, state) : null));
  if (inside && inside[frame] !== null) {
    return [strong(percent(inside[frame])), ` of the attention lies ${tellMasks()}${tellFirst(inside, frame)}${tellEmpty(frame)}. `];
  }
  const { ring } = run.maps[state.layer];
  if (border && border[frame] !== null && border[frame] > ring + 0.1) {
    return [strong(percent(border[frame])), ` of the attention lies on the border, where ${percent(ring)} would lie by chance${tellFirst(border, frame)}${tellEmpty(frame)}. `];
  }
  return border && border[frame] !== null && !inside ? ['Without masks, no number says how much of the attention lies on the objects. '] : [];
}

function tellFirst(shares, frame) {
  const first = drawnFrames[0];
  return frame !== first && shares[first] !== null ? `; ${frameTitle(first)} it was ${percent(shares[first])}` : '';
}

function tellMasks() {
  const areas = run.panel.map((entry) => entry.mask_area).filter((area) => area !== null);
  const mean = areas.reduce((sum, area) => sum + area, 0) / areas.length;
  return areas.length ? `inside the masks, which cover ${percent(mean)} of the pictures` : 'inside the masks';
}

function tellEmpty(frame) {
  const empty = run.panel.filter((_, item) => mapOf(state, item, frame)?.peak === 0).length;
  return empty ? ` (${empty} empty map${empty > 1 ? 's' : ''} not counted)` : '';
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
