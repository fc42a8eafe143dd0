// The page of an atlas: filters, the scatter, habits as cards, classes as rows.

const atlas = JSON.parse(document.getElementById('run-data').textContent);
const { info, points } = atlas;
const byId = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const colours = bytes(atlas.colours);
const percent = (share) => (share === null ? '–' : `${Math.round(100 * share)} %`);
const SHOWN = matchMedia('(max-width: 720px)').matches ? 12 : 30;
const CARDS = 8;
const state = { label: '', pred: '', habit: '', finding: '', one: null, habits: CARDS };

document.documentElement.classList.add('js');
document.body.classList.add('hot');

/** An element with text or children; names and labels only ever become text. */
function element(kind, given = {}, ...children) {
  const made = document.createElement(kind);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith('aria-') || key === 'scope') made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

function heat(map, className) {
  const canvas = element('canvas', { width: map ? map.w : 1, height: map ? map.h : 1, className });
  if (!map) return canvas;
  const cells = bytes(map.cells);
  const drawn = new ImageData(map.w, map.h);
  cells.forEach((cell, i) => drawn.data.set([...colours.subarray(3 * cell, 3 * cell + 3), 255], 4 * i));
  canvas.getContext('2d').putImageData(drawn, 0, 0);
  return canvas;
}

function shot(index, words) {
  const image = atlas.images[index];
  if (!image) return null;
  const box = element('div', { className: 'shot' });
  box.append(element('img', { src: image.uri, width: image.w, height: image.h, alt: words }));
  if (image.map) {
    const canvas = heat(image.map, '');
    canvas.style.opacity = atlas.alpha;
    box.append(canvas);
  }
  return box;
}

// Points and groups

const at = new Map(points.index.map((index, i) => [index, i]));
const flagged = new Set(atlas.groups.filter((g) => g.flagged).map((g) => `${g.label}\n${g.habit}`));
const labelOf = (i) => points.labels[points.label[i]];
const predOf = (i) => points.preds[points.pred[i]];

function matches(i) {
  if (state.label && labelOf(i) !== state.label) return false;
  if (state.pred && predOf(i) !== state.pred) return false;
  if (state.habit !== '' && points.habit[i] !== Number(state.habit)) return false;
  if (state.finding === 'flagged') return flagged.has(`${labelOf(i)}\n${points.habit[i]}`);
  if (state.finding === 'wrong') return points.right[i] === 0;
  if (state.finding === 'right') return points.right[i] === 1;
  return true;
}

function groupMatches(group) {
  if (state.label && group.label !== state.label) return false;
  if (state.habit !== '' && group.habit !== Number(state.habit)) return false;
  return state.finding !== 'flagged' || group.flagged;
}

const canvas = byId('scatter');
const place = (i) => [14 + (points.x[i] / 1000) * (canvas.width - 28), 14 + (points.y[i] / 1000) * (canvas.height - 28)];

function drawScatter(found) {
  const brush = canvas.getContext('2d');
  const look = getComputedStyle(document.documentElement);
  const [right, wrong, faint, ink] = ['--right', '--wrong', '--line', '--ink'].map((name) => probe(look, name));
  brush.clearRect(0, 0, canvas.width, canvas.height);
  const inside = new Set(found);
  brush.fillStyle = faint;
  points.index.forEach((_, i) => {
    if (!inside.has(i)) dot(brush, i, 1.5);
  });
  for (const i of found) {
    if (points.right[i] === 0) continue;
    brush.fillStyle = points.right[i] === 1 ? right : ink;
    dot(brush, i, 2.2);
  }
  brush.strokeStyle = wrong;
  brush.lineWidth = 1.6;
  for (const i of found) if (points.right[i] === 0) cross(brush, i);
  if (state.one !== null) ring(brush, ink);
}

/** A colour of the theme, computed: a canvas does not know `light-dark()`. */
function probe(look, name) {
  const swatch = element('i');
  swatch.style.color = `var(${name})`;
  document.body.append(swatch);
  const colour = getComputedStyle(swatch).color;
  swatch.remove();
  return colour;
}

function dot(brush, i, size) {
  const [x, y] = place(i);
  brush.beginPath();
  brush.arc(x, y, size, 0, 7);
  brush.fill();
}

function cross(brush, i) {
  const [x, y] = place(i);
  brush.beginPath();
  for (const s of [1, -1]) {
    brush.moveTo(x - 3, y - 3 * s);
    brush.lineTo(x + 3, y + 3 * s);
  }
  brush.stroke();
}

function ring(brush, ink) {
  const [x, y] = place(state.one);
  brush.strokeStyle = ink;
  brush.beginPath();
  brush.arc(x, y, 8, 0, 7);
  brush.stroke();
}

function nearest(event) {
  const box = canvas.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * canvas.width;
  const y = ((event.clientY - box.top) / box.height) * canvas.height;
  let best = null;
  let distance = 30 ** 2;
  points.index.forEach((_, i) => {
    const [a, b] = place(i);
    const d = (a - x) ** 2 + (b - y) ** 2;
    if (d < distance && matches(i)) [best, distance] = [i, d];
  });
  return best;
}

function showOne() {
  const box = byId('one');
  box.replaceChildren();
  if (state.one === null) return;
  const i = state.one;
  const sign = { 0: '✕ ', 1: '✓ ' }[points.right[i]] || '';
  const lines = element('div');
  const name = element('bdi', {}, points.name[i]);
  const href = points.root === null ? null : [...points.root.split(/[\\/]/), ...points.name[i].split('/')].map(encodeURIComponent).join('/');
  const linked = href !== null && !/^item \d+$/.test(points.name[i]);
  lines.append(element('p', {}, linked ? element('a', { href, target: '_blank', rel: 'noopener' }, name) : name));
  lines.append(element('p', {}, element('b', {}, labelOf(i) || 'no label')));
  lines.append(element('p', {}, `${sign}predicted ${predOf(i) || 'nothing'}`));
  const habit = points.habit[i] < 0 ? 'an empty map' : `habit ${points.habit[i] + 1}`;
  const numbers = [habit, points.prob[i] === null ? '' : `probability of the class explained ${percent(points.prob[i])}`, points.loss[i] === null ? '' : `loss ${points.loss[i]}`];
  lines.append(element('p', { className: 'small quiet' }, numbers.filter(Boolean).join(' · ')));
  const picture = shot(points.index[i], `${labelOf(i)}, predicted ${predOf(i)}`);
  if (picture) box.append(picture);
  box.append(lines);
}

function listMatches(found) {
  const first = [...found].sort((a, b) => (points.loss[b] ?? 0) - (points.loss[a] ?? 0)).slice(0, SHOWN);
  byId('matches').replaceChildren(
    ...first.map((i) => {
      const button = element('button', { type: 'button', title: points.name[i] }, points.name[i].split('/').pop());
      button.addEventListener('click', () => choose(i));
      return element('li', {}, button);
    }),
  );
  byId('count').textContent = `${found.length.toLocaleString('en')} of ${points.index.length.toLocaleString('en')} images match`;
}

function choose(i) {
  state.one = i;
  showOne();
  drawScatter(found());
}

// Habits and classes

function card(group) {
  const own = element('article', { className: group.flagged ? 'habit flagged tile' : 'habit tile' });
  const title = element('h3', {}, element('bdi', {}, `${group.label}, habit ${group.habit + 1}`));
  const sign = group.flagged ? '⚑ flagged · ' : '';
  title.append(element('span', { className: 'severity' }, `${sign}suspicion ${(group.suspicion || 0).toFixed(2)}`));
  const shots = element('div', { className: 'shots' });
  for (const index of group.typical) {
    const picture = shot(index, `Typical of ${group.label}, habit ${group.habit + 1}`);
    if (picture) shots.append(picture);
  }
  const button = element('button', { type: 'button' }, 'Show its images');
  button.setAttribute('aria-label', `Show the images of ${group.label}, habit ${group.habit + 1}`);
  button.addEventListener('click', () => {
    set({ label: group.label, habit: String(group.habit), pred: '', finding: '' });
  });
  own.append(title, element('p', {}, element('bdi', {}, group.text)), shots, button);
  return own;
}

function showHabits() {
  const found = atlas.groups.filter(groupMatches);
  byId('habits').replaceChildren(...found.slice(0, state.habits).map(card));
  if (!found.length) byId('habits').append(element('p', { className: 'quiet' }, 'No habit matches.'));
  byId('more').hidden = found.length <= state.habits;
}

function classRow(one) {
  const row = element('tr');
  const button = element('button', { type: 'button', className: 'link' }, 'filter');
  button.setAttribute('aria-label', `Show the images of ${one.label}`);
  button.addEventListener('click', () => set({ label: one.label, habit: '', pred: '', finding: '' }));
  const mean = heat(one.mean, 'mean');
  mean.setAttribute('role', 'img');
  mean.setAttribute('aria-label', one.mean ? `Mean map of ${one.label}` : `No map of ${one.label}`);
  const habits = atlas.groups.filter((g) => g.label === one.label).length;
  const verdict = element('span', { className: one.verdict === 'shortcut' ? 'shortcut' : 'quiet' }, one.verdict || '–');
  const cells = [mean, one.images.toLocaleString('en'), percent(one.accuracy), percent(one.spread), percent(one.border_share)];
  if (masked) cells.push(percent(one.mask_share));
  cells.push(String(habits), verdict, button);
  row.append(element('td', {}, cells[0]), element('th', { scope: 'row' }, element('bdi', {}, one.label)));
  row.append(...cells.slice(1).map((cell) => element('td', {}, cell)));
  return row;
}

const masked = atlas.classes.some((one) => one.mask_share !== null);

function showClasses() {
  const heads = ['mean map', 'class', 'images', 'right', 'spread', 'on the border', ...(masked ? ['in the mask'] : []), 'habits', 'interventions', ''];
  const head = element('tr', {}, ...heads.map((words) => (words ? element('th', { scope: 'col' }, words) : element('td'))));
  byId('classes').append(element('thead', {}, head), element('tbody', {}, ...atlas.classes.map(classRow)));
}

// Filters

function fill(id, names, first) {
  byId(id).replaceChildren(element('option', { value: '' }, first), ...names.map(([value, words]) => element('option', { value }, words)));
}

function fillHabits() {
  const own = atlas.groups.filter((g) => !state.label || g.label === state.label);
  const numbers = [...new Set(own.map((g) => g.habit))].sort((a, b) => a - b);
  fill('habit', numbers.map((h) => [String(h), String(h + 1)]), 'any');
}

function set(changes) {
  Object.assign(state, changes, { habits: CARDS });
  update();
}

const found = () => points.index.map((_, i) => i).filter(matches);

function update() {
  fillHabits();
  for (const id of ['label', 'pred', 'habit', 'finding']) byId(id).value = state[id];
  if (state.one !== null && !matches(state.one)) state.one = null;
  const those = found();
  listMatches(those);
  showOne();
  showHabits();
  drawScatter(those);
}

const sure = info.accuracy === null ? '' : ` · ${percent(info.accuracy)} right`;
byId('summary').textContent = `${info.images.toLocaleString('en')} images${sure} · layer ${info.layer}, ${info.method}, explained: ${info.explained}`;
byId('notes').hidden = !info.notes.length;
byId('notes').textContent = info.notes.join(' ');
byId('no-finding').hidden = info.findings.length > 0;
byId('no-finding').textContent = info.judged
  ? 'No habit is flagged: interventions confirmed no shortcut.'
  : 'No habit is flagged: nothing was judged, so no shortcut can be confirmed.';
fill('label', points.labels.filter(Boolean).map((name) => [name, name]), 'any');
fill('pred', points.preds.filter(Boolean).map((name) => [name, name]), 'any');
for (const id of ['label', 'pred', 'habit', 'finding']) {
  byId(id).addEventListener('change', (event) => set({ [id]: event.target.value, ...(id === 'label' ? { habit: '' } : {}) }));
}
byId('heat').addEventListener('change', (event) => document.body.classList.toggle('hot', event.target.checked));
byId('clear').addEventListener('click', () => set({ label: '', pred: '', habit: '', finding: '', one: null }));
byId('more').addEventListener('click', () => {
  state.habits += CARDS;
  showHabits();
});
canvas.addEventListener('click', (event) => choose(nearest(event)));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawScatter(found()));
showClasses();
update();
