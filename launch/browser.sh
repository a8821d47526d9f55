#!/usr/bin/env bash
# Sees to the browser that tests/demo_test.py drives: Chromium and its driver.
# Installs them where they are missing, on Debian as root.
set -euo pipefail
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! grep -qs '^ID=debian' /etc/os-release; then
  echo "launch/browser.sh: the page's test needs chromium and chromedriver." >&2
  echo "Install both (Debian, as root: apt-get install chromium chromium-driver)." >&2
  exit 1
fi
echo "== Installing Chromium, for the page's test"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  chromium chromium-driver >/dev/null
