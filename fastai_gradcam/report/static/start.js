// Curves of the whole panel, what follows a change, and the start of the page.

let pageCharts = [];

function fillCurves() {
  pageCharts = frameCount ? [...attentionCharts(state), ...metricCharts()] : [];
  byId('curves').replaceChildren(...pageCharts.map((one) => one.element));
  byId('curves').closest('section').hidden = !pageCharts.length;
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
  startTransport();
  if (framed) fitIntoFrame();
  byId('tools').open = matchMedia('(min-width: 1100px)').matches;
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
