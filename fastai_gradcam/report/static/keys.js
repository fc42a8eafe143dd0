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
