// The controls: each an element with the name of what it sets as id, and in the large view `large-` before it.

function choices(id, pairs) {
  byId(id).replaceChildren(...pairs.map(([chosen, text]) => make('option', { value: chosen, textContent: text })));
}

const CONTROLS = Object.keys(SETTINGS).filter((name) => SETTINGS[name].control);

/** A control and its twin in the large view, if it has one. */
function elementsOf(name) {
  return SETTINGS[name].large ? [byId(name), byId(`large-${name}`)] : [byId(name)];
}

/** What is hidden with a control: its label, or the row that holds both. */
function holderOf(element) {
  return element.closest('label, .slider');
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
  byId('outline-control').hidden = !run.panel.some((entry) => entry.mask);
  for (const name of CONTROLS) {
    const [own, twin] = elementsOf(name);
    if (!twin) continue;
    if (own.options) twin.replaceChildren(...[...own.options].map((option) => option.cloneNode(true)));
    holderOf(twin).hidden = holderOf(own).hidden;
  }
  byId('answer').closest('label').hidden = !has('correct');
  byId('sure').closest('label').hidden = !has('pred_prob');
}

function listenToControls() {
  for (const name of CONTROLS) {
    const read = ({ target }) => {
      if (target.type === 'checkbox') return target.checked;
      return typeof SETTINGS[name].first === 'number' ? Number(target.value) : target.value;
    };
    elementsOf(name).forEach((element) => element.addEventListener('input', (event) => change({ [name]: read(event) })));
  }
  byId('clear').addEventListener('click', showAll);
  byId('theme').addEventListener('click', () => change({ theme: THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length] }));
}

function showControls() {
  for (const name of CONTROLS) {
    for (const element of elementsOf(name)) {
      if (element.type === 'checkbox') element.checked = state[name];
      else element.value = state[name];
    }
  }
  const [opacity, below] = [percent(state.alpha), state.threshold ? percent(state.threshold) : 'off'];
  elementsOf('alpha').forEach((element) => element.setAttribute('aria-valuetext', opacity));
  byId('threshold').setAttribute('aria-valuetext', below);
  byId('alpha-now').textContent = opacity;
  byId('threshold-now').textContent = below;
  const filtered = FILTERS.filter((name) => state[name]).length;
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
