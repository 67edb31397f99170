#!/usr/bin/env python3
"""Looks at a page of `spinup run --html` as a reader does, in headless Chromium.

    page.py PAGE [--screenshots DIR] [--axe axe.min.js] [--open-within SECONDS]

It needs Chromium and the package playwright (pip), and for the check of contrast and labels axe-core (npm). It opens the page from file://,
light and dark and on a narrow screen, and fails on an error in the console, a request to anywhere, a rule of axe that is broken, or something that a keyboard cannot do.
"""

import argparse
import pathlib
import shutil
import sys
import time

from playwright.sync_api import sync_playwright

parser = argparse.ArgumentParser()
parser.add_argument("page", type=pathlib.Path)
parser.add_argument("--screenshots", type=pathlib.Path)
parser.add_argument("--axe", type=pathlib.Path)
parser.add_argument("--open-within", type=float, default=2.0)
arguments = parser.parse_args()
failures = []


def check(what, holds):
    print(("ok   " if holds else "FAIL ") + what)
    if not holds:
        failures.append(what)


def look_narrow(browser):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(arguments.page.resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('#cells tbody tr').length > 0")
    wide = page.evaluate("document.documentElement.scrollWidth")
    check(f"narrow: tables scroll by themselves, the page has {wide} of 390 pixels", wide <= 390)
    if arguments.screenshots:
        page.screenshot(path=arguments.screenshots / "page-narrow.png")
    context.close()


def look(browser, scheme):
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1400, "height": 1000}, bypass_csp=False)
    page = context.new_page()
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    began = time.monotonic()
    page.goto(arguments.page.resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('#cells tbody tr').length > 0")
    took = time.monotonic() - began
    count = page.inner_text("#count")
    check(f"{scheme}: opens in {took:.2f} s, {count}", took <= arguments.open_within)
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=arguments.screenshots / f"page-{scheme}.png")

    # From pairing to pairing with the arrows, and into one with Enter.
    buttons = page.locator(".grid button")
    if buttons.count() > 1:
        buttons.first.focus()
        page.keyboard.press("ArrowDown")
        moved = page.evaluate("document.activeElement.dataset.pairing")
        check(f"{scheme}: the arrow goes on to {moved}", moved and moved != buttons.first.get_attribute("data-pairing"))
        page.keyboard.press("Enter")
        check(f"{scheme}: Enter shows that pairing alone", f"only {moved}" in page.inner_text("#count"))
        page.keyboard.press("Enter")

    # A cell that carries its trace: by its link in the list, with the keyboard.
    cell = page.evaluate("Object.keys(JSON.parse(document.getElementById('data').textContent).details)[0] || null")
    if cell:
        page.fill("#by-text", cell)
        opener = page.locator("#cells tbody button").first
        opener.focus()
        page.keyboard.press("Enter")
        check(f"{scheme}: {cell} opens", page.inner_text("#detail h2") == cell)
        focused = page.evaluate("document.activeElement.tagName")
        check(f"{scheme}: and has the focus", focused == "H2")
        page.wait_for_function("(() => { const i = document.querySelector('#detail img'); return i && i.complete; })()")
        check(f"{scheme}: its picture is drawn", page.evaluate("document.querySelector('#detail img').naturalWidth") > 100)
        check(f"{scheme}: the command is there", "spinup " in page.inner_text("#detail code"))
        if arguments.screenshots:
            page.locator("#detail").screenshot(path=arguments.screenshots / f"cell-{scheme}.png")
    if arguments.axe:
        # Put in by the browser itself, past the page's policy.
        page.evaluate(arguments.axe.read_text())
        result = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})")
        for violation in result["violations"]:
            print(f"     {violation['id']}: {violation['help']}")
            for node in violation["nodes"][:3]:
                print(f"       {node['html'][:160]}  {node.get('failureSummary', '')[:200]!r}")
        check(f"{scheme}: axe finds nothing in {len(result['passes'])} rules", not result["violations"])
    check(f"{scheme}: nothing in the console {errors or ''}", not errors)
    outside = [url for url in requests if not url.startswith(("file:", "blob:"))]
    check(f"{scheme}: no request leaves the page {outside or ''}", not outside)
    context.close()


with sync_playwright() as playwright:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    browser = playwright.chromium.launch(
        executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
    )
    for scheme in ("light", "dark"):
        look(browser, scheme)
    look_narrow(browser)
    browser.close()
sys.exit(1 if failures else 0)
