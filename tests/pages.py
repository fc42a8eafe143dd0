"""Written pages, read as text and in the browser, and names that mean harm to them."""

import json
import re
import time
from pathlib import Path

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    '"><img src=x onerror="window.pwned = 3">',
    "'; window.pwned = 4; //",
    "{{ 7 * 7 }} & &lt;b&gt;",
    "🐟👩‍👩‍👧 emoji",
    "سمك \u202eabc",
    "line\u2028separators\u2029",
    "x" * 300,
    "../../etc/passwd",
    "cat",
    "Cat",
    "None",
    "nan",
    "constructor",
    "toString",
    "__proto__",
]


def embedded(path):
    "The data inside of a written page."
    html = Path(path).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="run-data">(.*?)</script>', html, re.S)[1])


def until(page, condition):
    "Wait for something in the page; Playwright's own way needs `eval`, which the page forbids."
    end = time.monotonic() + 8
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"still not: {condition}"
        time.sleep(0.03)


def blocked_in(page):
    "Which of the page's own rules stop a script and an image that got into it."
    blocked = page.evaluate(
        """() => new Promise(resolve => {
            const blocked = [];
            addEventListener('securitypolicyviolation', event => {
                blocked.push(event.effectiveDirective);
                if (blocked.length === 2) resolve(blocked);
            });
            const script = document.createElement('script');
            script.textContent = 'window.pwned = 1';
            const image = document.createElement('img');
            image.src = 'http://127.0.0.1:9/';
            document.body.append(script, image);
            setTimeout(resolve, 2000, blocked);
        })"""
    )
    return sorted(blocked)


def work(page):
    "Seconds of processor time that the page's main thread has taken; the page was opened as `measured`."
    numbers = {m["name"]: m["value"] for m in page.gauge.send("Performance.getMetrics")["metrics"]}
    assert numbers["ScriptDuration"] > 0
    return numbers["TaskDuration"]
