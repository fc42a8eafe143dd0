// The large view of one image: its overlay, its curves over the frames and its numbers.

const dialog = byId('large');
const stage = byId('large-canvas');
const STAGE_SIDE = 560;
const FILM_LENGTH = 8;
let largeCharts = [];
let largeOut = null;

function scratch(width, height) {
  return make('canvas', { width, height });
}

function drawLarge() {
  if (state.item === null) return;
  const { item } = state;
  const photo = photoOf(item, drawLarge);
  if (!photo) {
    // Nothing of the image before may stay under this one's name.
    stage.getContext('2d').clearRect(0, 0, stage.width, stage.height);
    return;
  }
  if (!largeOut || largeOut.width !== photo.width || largeOut.height !== photo.height) {
    largeOut = new ImageData(photo.width, photo.height);
  }
  paint(state, item, state.frame, photo, largeOut);
  const small = scratch(photo.width, photo.height);
  small.getContext('2d').putImageData(largeOut, 0, 0);
  const zoom = Math.max(1, STAGE_SIDE / Math.max(photo.width, photo.height));
  stage.width = Math.round(photo.width * zoom);
  stage.height = Math.round(photo.height * zoom);
  const context = stage.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(small, 0, 0, stage.width, stage.height);
  if (state.outline) drawOutline(context, item, zoom);
  drawSlices(context, item);
}

function captionLarge() {
  const { item } = state;
  const { frame, note } = run.frames[state.frame];
  byId('large-answer').className = `answer ${answerClass(item)}`;
  byId('large-answer').replaceChildren(...answerParts(item), ...extraParts(item));
  byId('large-missing').hidden = !note;
  byId('large-missing').textContent = note ? `Frame ${frame} ${note}` : '';
  stage.setAttribute('aria-label', `Where the model looks, frame ${frame}`);
  byId('large-when').textContent = `Frame ${frame} · ${frameTitle(state.frame)}`;
  byId('facts-title').textContent = `The numbers of frame ${frame}, ${frameTitle(state.frame)}`;
  byId('facts').replaceChildren(...Object.keys(MEASURES).filter(has).flatMap((column) => fact(column, item)));
  byId('large-frame').value = state.frame;
  byId('large-frame').setAttribute('aria-valuetext', `frame ${frame}, ${frameTitle(state.frame)}`);
  largeCharts.forEach((one) => one.update(state.frame));
  byId('film').querySelectorAll('button').forEach((button) => {
    button.setAttribute('aria-current', String(Number(button.dataset.frame) === state.frame));
  });
}

function fact(column, item) {
  const [name, about] = MEASURES[column];
  const words = inNumbers(column, value(column, state, item));
  return [make('dt', {}, make('b', { textContent: words }), ` ${name}`), make('dd', { className: 'quiet', textContent: about })];
}

/** A few frames spread evenly over the run, the first and the last among them. */
function filmFrames() {
  const count = Math.min(FILM_LENGTH, drawnFrames.length);
  const at = (i) => (count > 1 ? Math.round((i * (drawnFrames.length - 1)) / (count - 1)) : 0);
  return Array.from({ length: count }, (_, i) => drawnFrames[at(i)]);
}

function drawFilm() {
  if (state.item === null) return;
  const { item } = state;
  const photo = photoOf(item, drawFilm);
  if (!photo) {
    byId('film').replaceChildren();
    byId('beside').replaceChildren();
    return;
  }
  byId('film').replaceChildren(...filmFrames().map((frame) => {
    const { frame: name } = run.frames[frame];
    const button = thumbnail({ ...state, frame }, item, photo, String(name), () => goTo(frame));
    button.setAttribute('aria-label', `Frame ${name}`);
    button.dataset.frame = frame;
    return button;
  }));
  drawBeside(item, photo);
  captionLarge();
}

/** A small picture of the image as `view` shows it, which leads there. */
function thumbnail(view, item, photo, words, act) {
  const canvas = scratch(photo.width, photo.height);
  const out = new ImageData(photo.width, photo.height);
  paint({ ...view, heat: true }, item, view.frame, photo, out);
  canvas.getContext('2d').putImageData(out, 0, 0);
  const button = make('button', { type: 'button' }, canvas, make('span', { className: 'clip', textContent: words, title: words }));
  button.addEventListener('click', act);
  return button;
}

function fillLarge() {
  const { item } = state;
  const entry = run.panel[item];
  byId('large-label').textContent = entry.label || `Image ${item + 1}`;
  byId('large-label').title = entry.label;
  byId('large-file').textContent = entry.name;
  byId('large-file').title = entry.name;
  const own = findings.filter((finding) => finding.items.includes(item));
  byId('large-findings').replaceChildren(...own.map((finding) => make('li', { textContent: finding.text || finding.kind, dir: 'auto' })));
  largeCharts = itemCharts(state, item);
  byId('large-curves').replaceChildren(...largeCharts.map((one) => one.element));
  captionLarge();
  drawFilm();
  drawLarge();
}

/** The picture as it is shown, under a name that says what it is. Made when it is asked for. */
function savePicture() {
  const { item, frame } = state;
  const words = [run.info.name, run.panel[item].label || `image ${item + 1}`, `frame ${run.frames[frame].frame}`];
  byId('large-save').download = `${words.join(' ').replace(/[^\p{L}\p{N}._-]+/gu, '-')}.png`;
  byId('large-save').href = stage.toDataURL();
}

function showLargeFrame() {
  captionLarge();
  const photo = photoOf(state.item, drawFilm);
  if (photo) drawBeside(state.item, photo);
}

function openLarge() {
  fillLarge();
  if (dialog.open) return;
  dialog.showModal();
  byId('large-label').focus();
}

function closeLarge() {
  const { item } = state;
  if (item === null) return;
  change({ item: null });
  tiles[item].picture.focus();
}

/** The image `step` places on among those the grid shows, round and round. */
function stepImage(step) {
  const among = shown.includes(state.item) ? shown : tiles.map((_, item) => item);
  const at = among.indexOf(state.item) + step;
  change({ item: among[(at + among.length) % among.length] });
}

views.push((changed) => {
  if (changed.has('item') && state.item === null && dialog.open) dialog.close();
  if (state.item === null) return;
  if (['item', 'layer', 'cls'].some((name) => changed.has(name))) openLarge();
  else if (changed.has('frame')) showLargeFrame();
  if (calls(changed, 'draw')) drawLarge();
  if (['cmap', 'alpha', 'threshold', 'scale'].some((name) => changed.has(name))) drawFilm();
});

function startLarge() {
  byId('large-frame').max = Math.max(0, frameCount - 1);
  byId('large-frame').addEventListener('input', (event) => goTo(Number(event.target.value)));
  byId('large-play').addEventListener('click', togglePlay);
  byId('large-save').addEventListener('click', savePicture);
  byId('large-save').hidden = framed; // a notebook's frame may not save files
  byId('large-close').addEventListener('click', () => dialog.close());
  byId('large-next').addEventListener('click', () => stepImage(1));
  byId('large-previous').addEventListener('click', () => stepImage(-1));
  dialog.addEventListener('close', closeLarge);
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  if (state.item !== null) openLarge();
}
