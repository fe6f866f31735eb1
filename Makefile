# make run     everything on this machine, in the foreground; Ctrl-C stops it, the data stays
# make test    the whole suite (ARGS="..." is passed to pytest)
# make lint    style, types, arrows, migrations, API schema
# make bench   one JSON line per benchmark
# make reset   stop, and delete the local market's data and credentials
# make lock    resolve requirements.lock anew

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: run test lint bench reset env lock preflight

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/installed-from
# Tools look at the settings without a running market.
TOOLS := DJANGO_SETTINGS_MODULE=tests.settings PYTHONPATH=.

run: env
	@exec $(PYTHON) -m marketplace.local run

test: env
	@$(PYTHON) -m pytest $(ARGS); code=$$?; \
	if [ -n "$$EXIT_CODE_FILE" ]; then echo $$code > "$$EXIT_CODE_FILE"; fi; exit $$code

bench: env
	@$(PYTHON) -m tests.benchmarks $(ARGS)

lint: env
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy marketplace metering pricing providers tests manage.py
	$(VENV)/bin/lint-imports
	$(TOOLS) $(PYTHON) manage.py check
	$(TOOLS) $(PYTHON) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
	$(TOOLS) $(PYTHON) manage.py spectacular --validate --fail-on-warn --file /dev/null

reset: env
	@$(PYTHON) -m marketplace.local reset

# The environment is made again when the lock changes, and only then.
env: preflight
	@if ! cmp -s requirements.lock $(STAMP); then \
		$(MAKE) --no-print-directory $(VENV)/made-for-lock; \
	fi

preflight:
	@sh marketplace/local/preflight.sh > /dev/null

.PHONY: $(VENV)/made-for-lock
$(VENV)/made-for-lock:
	@set -e; python=$$(sh marketplace/local/preflight.sh); \
	wanted=$$($$python -c 'import sys; print(sys.version_info[:2])'); \
	if [ "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)" != "$$wanted" ]; then \
		echo "Making $(VENV) with $$python ..."; \
		$$python -m venv --clear $(VENV); \
	fi; \
	echo "Installing the packages of requirements.lock (a minute or two the first time) ..."; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock; \
	$(PYTHON) -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "tokenyard.pth").write_text(str(pathlib.Path.cwd()) + "\n")'; \
	cp requirements.lock $(STAMP); \
	echo "Packages installed."

COMPILE := $(PYTHON) -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --quiet pyproject.toml

# requirements.lock is for a checkout; the image and an inference host take only their own part.
lock: env
	$(COMPILE) --extra agent --extra server --extra dev --extra calibrate -o requirements.lock
	$(COMPILE) --extra server --constraint requirements.lock -o requirements-server.lock
	$(COMPILE) --extra agent --constraint requirements.lock -o requirements-agent.lock
