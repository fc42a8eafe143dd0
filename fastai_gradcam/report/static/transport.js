// The slider over the frames: its marks, the frame's name and metrics, and play.

function fillTicks() {
  const at = (frame) => `${frameCount > 1 ? (frame / (frameCount - 1)) * 100 : 50}%`;
  const marks = run.frames.flatMap((frame, i) => {
    if (frame.note) return [['failed', i]];
    return i && frame.fit !== run.frames[i - 1].fit ? [['fit', i]] : [];
  });
  marks.push(...alarmFrames().map((frame) => ['alarm', frame]));
  for (const [kind, frame] of marks) {
    const mark = make('i', { className: kind, textContent: { failed: '×', alarm: '!' }[kind] || '' });
    mark.style.left = at(frame);
    byId('ticks').append(mark);
  }
}

/** Where a class began to depend on something that was tried, by the place of its frame. */
function alarmFrames() {
  return [...new Set(run.alarms.map(({ frame }) => run.frames.findIndex((one) => one.frame === frame)))].filter((i) => i >= 0);
}

function alarmsIn(frame) {
  const names = run.alarms.filter((alarm) => alarm.frame === run.frames[frame].frame).map(({ label }) => label || 'the classes together');
  return names.length ? `From here on, a shortcut is confirmed for ${names.join(', ')}.` : '';
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
  byId('alarm').textContent = alarmsIn(state.frame);
  byId('alarm').hidden = !byId('alarm').textContent;
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

function startTransport() {
  byId('frame').max = Math.max(0, frameCount - 1);
  byId('frame').addEventListener('input', ({ target }) => goTo(Number(target.value)));
  byId('play').addEventListener('click', togglePlay);
}
