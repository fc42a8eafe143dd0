// The panel as a grid: which images, in which order, and each with its answer.

const panel = byId('panel');
const tiles = run.panel.map(makeTile);
const inSight = new Set();
const watcher = new IntersectionObserver(noticeSight, { rootMargin: '300px' });

function makeTile(entry, item) {
  const canvas = make('canvas', { width: entry.width, height: entry.height });
  const picture = make('button', { type: 'button', className: 'picture', attributes: { 'aria-haspopup': 'dialog' } }, canvas);
  picture.addEventListener('click', () => change({ item }));
  const label = make('p', { className: 'label', title: `${entry.label}\n${entry.name}`, dir: 'auto' }, ...flexible(entry.label));
  const answer = make('p', { className: 'answer' });
  const extra = make('p', { className: 'extra quiet small' });
  const element = make('article', { className: 'tile', attributes: { 'data-item': item } }, picture);
  element.append(make('div', { className: 'caption' }, label, answer, extra));
  // The pixels are worked out here, not on the graphics card, and only put there.
  const context = canvas.getContext('2d', { willReadFrequently: true });
  return { element, picture, context, answer, extra, out: null };
}

function noticeSight(entries) {
  for (const { target, isIntersecting } of entries) {
    const item = Number(target.dataset.item);
    if (isIntersecting) inSight.add(item);
    else inSight.delete(item);
    if (isIntersecting) drawTile(item);
  }
}

function drawTile(item) {
  if (!inSight.has(item)) return;
  const tile = tiles[item];
  const photo = photoOf(item, () => drawTile(item));
  if (!photo) return;
  const { context } = tile;
  tile.out ||= new ImageData(photo.width, photo.height);
  paint(state, item, state.frame, photo, tile.out);
  context.putImageData(tile.out, 0, 0);
  if (state.outline) drawOutline(context, item, 1);
  drawSlices(context, item);
}

function answerClass(item, frame = state.frame) {
  const correct = value('correct', state, item, frame);
  if (correct === null) return '';
  return correct ? 'right' : 'wrong';
}

/** "✓ Trout 0.98", with names as text that keeps its own direction. */
function answerParts(item) {
  const sign = { right: '✓', wrong: '✗', '': '' }[answerClass(item)];
  const pred = className('pred', state, item);
  if (!pred) return [];
  const said = { right: 'right: ', wrong: 'wrong: ', '': '' }[answerClass(item)];
  return [
    make('span', { className: 'sign', textContent: sign, attributes: { 'aria-hidden': 'true' } }),
    make('span', { className: 'unseen', textContent: said }),
    make('bdi', { className: 'name', title: pred }, ...flexible(pred)),
    make('span', { className: 'prob', textContent: percent(value('pred_prob', state, item)) }),
  ];
}

/** "image 3, Trout", or without a label "image 3". */
function inSpeech(item) {
  const { label } = run.panel[item];
  return label ? `image ${item + 1}, ${label}` : `image ${item + 1}`;
}

function answerInSpeech(item) {
  const pred = className('pred', state, item);
  if (!pred) return [];
  const said = answerClass(item);
  return [`${said ? `${said}: ` : ''}${pred}, ${percent(value('pred_prob', state, item))}`];
}

function extraParts(item) {
  const parts = [];
  const map = mapOf(state, item);
  if (map && !map.peak) parts.push(make('span', { textContent: map.peak === null ? 'map is not finite' : 'empty map' }));
  const target = className('target', state, item);
  if (target && (classCount > 1 || target !== className('pred', state, item))) {
    const name = make('bdi', { className: 'name', title: target }, ...flexible(target));
    const prob = value('prob', state, item);
    const known = prob === null || prob === undefined ? [] : [`(${percent(prob)})`];
    parts.push(make('span', { className: 'target' }, 'map of', name, ...known));
  }
  const [, , column] = SORTS.find(([name]) => name === state.sort);
  if (column) parts.push(make('span', { textContent: `${MEASURES[column][0].toLowerCase()} ${inNumbers(column, value(column, state, item))}` }));
  if (run.panel[item].note) parts.push(make('span', { textContent: `image left out: ${run.panel[item].note}` }));
  return parts;
}

function captionTile(item) {
  const tile = tiles[item];
  tile.element.classList.remove('right', 'wrong');
  if (answerClass(item)) tile.element.classList.add(answerClass(item));
  tile.answer.replaceChildren(...answerParts(item));
  tile.extra.replaceChildren(...extraParts(item));
  tile.picture.setAttribute('aria-label', [`Enlarge ${inSpeech(item)}.`, ...answerInSpeech(item)].join(' '));
}

function matches(item) {
  const entry = run.panel[item];
  const found = state.finding ? findingItems(state.finding) : null;
  const sure = state.sure ? value('pred_prob', state, item) : null;
  return (
    (!state.label || entry.label === state.label)
    && (!state.answer || answerClass(item) === state.answer)
    && (!state.sure || (sure !== null && SURE[state.sure](sure)))
    && (!found || found.has(item))
  );
}

function sorted(items) {
  const [, , column, weigh] = SORTS.find(([name]) => name === state.sort);
  if (state.sort === 'label') return [...items].sort((a, b) => labels.indexOf(run.panel[a].label) - labels.indexOf(run.panel[b].label) || a - b);
  if (!column) return items;
  const weight = (item) => {
    const x = value(column, state, item);
    return x === null ? Infinity : weigh(x);
  };
  const weights = new Map(items.map((item) => [item, weight(item)]));
  return [...items].sort((a, b) => (weights.get(a) === weights.get(b) ? a - b : weights.get(a) - weights.get(b)));
}

let shown = [];

function arrange() {
  const items = sorted(tiles.map((_, item) => item).filter(matches));
  if (items.join() !== shown.join() || !panel.children.length) setTiles(items);
  shown = items;
  byId('nothing').hidden = items.length > 0;
  const filtered = FILTERS.some((name) => state[name]);
  byId('count').textContent = filtered ? `${items.length} of ${itemCount} images` : '';
  byId('clear').hidden = !filtered;
}

/** Moving an element takes the focus from it, so it is given back. */
function setTiles(items) {
  const focus = document.activeElement;
  const kept = new Set(items);
  tiles.forEach((_, item) => kept.has(item) || inSight.delete(item));
  panel.replaceChildren(...items.map((item) => tiles[item].element));
  if (panel.contains(focus)) focus.focus({ preventScroll: true });
}

/** Whether maps vanish wholly below the threshold is said: else a page without colours has no reason. */
function sayVanished() {
  const hidden = shown.filter((item) => {
    const map = mapOf(state, item);
    return state.heat && state.threshold > 0 && map && map.peak && gain(state, item, map) < state.threshold;
  });
  byId('vanished').hidden = !hidden.length;
  byId('vanished').textContent = hidden.length ? `${hidden.length} of ${shown.length} maps are wholly below ${percent(state.threshold)} of this scale and not drawn.` : '';
}

/** Images keep their places while the run plays, so that the eye can follow them. */
views.push((changed) => {
  if (!playing() && (calls(changed, 'arrange') || changed.has('playing'))) arrange();
  if (calls(changed, 'caption')) tiles.forEach((_, item) => captionTile(item));
  if (calls(changed, 'draw')) inSight.forEach(drawTile);
  if (calls(changed, 'draw') || calls(changed, 'arrange')) sayVanished();
  if (changed.has('size')) panel.dataset.size = state.size;
});

addEventListener('beforeprint', () => shown.forEach((item) => inSight.add(item) && drawTile(item)));

function startGrid() {
  panel.dataset.size = state.size;
  arrange();
  sayVanished();
  tiles.forEach((tile, item) => {
    captionTile(item);
    watcher.observe(tile.element);
  });
}
