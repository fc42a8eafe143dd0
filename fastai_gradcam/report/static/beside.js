// In the large view, the image in each layer and class side by side.

/** "Trout · 0.7.2": what tells one of the pictures from the others. */
function besideWords(view, item) {
  const parts = [];
  if (classCount > 1) parts.push(className('target', view, item) || `class ${view.cls + 1}`);
  if (run.layers.length > 1) parts.push(run.layers[view.layer]);
  return parts.join(' · ');
}

function drawBeside(item, photo) {
  const views = run.layers.flatMap((_, layer) => Array.from({ length: classCount }, (__, cls) => ({ ...state, layer, cls })));
  byId('beside').hidden = views.length < 2;
  if (views.length < 2) return;
  byId('beside').replaceChildren(...views.map((view) => {
    const { layer, cls } = view;
    const button = thumbnail(view, item, photo, besideWords(view, item), () => change({ layer, cls }));
    button.setAttribute('aria-current', String(layer === state.layer && cls === state.cls));
    return button;
  }));
}
