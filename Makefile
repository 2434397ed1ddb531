# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need first.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup demo test check bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	@touch $@

demo: setup  ## build, lock and verify a small drawn corpus, end to end
	$(RUN) -m tests.demo

test: setup  ## every test, each file in one of two processes: many tests wait, for servers and for time to pass
	$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# Peers that we are measured against pin packages that clash with ours, so they live apart.
.venv-peers/.installed: tests/bench/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r tests/bench/peers.txt
	@touch $@

.venv-loaders/.installed: tests/bench/loader_peers.txt
	$(PYTHON) -m venv .venv-loaders
	.venv-loaders/bin/python -m pip install --quiet --disable-pip-version-check -r tests/bench/loader_peers.txt
	@touch $@

bench: setup .venv-peers/.installed .venv-loaders/.installed  ## every benchmark, as JSON lines
	@for name in readers language plan plan_mixed archives shard images hostile download stream loader model; do $(RUN) -m tests.bench.$$name --json || exit 1; done

clean:
	rm -rf $(VENV) .venv-peers .venv-loaders .demo build dist *.egg-info
