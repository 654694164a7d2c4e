# make demo   trains and scores MoTE on MovingShapes, from nothing but Python >= 3.11
# make test   runs every test that needs no data and takes less than minutes
# make pictures   takes the README's screenshot of the app, after make demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow pictures style quality clean

# Made anew when the dependencies change; pip says what it could not find.
$(VENV)/.made:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# What the demo needs, and what the tests need beyond it.
$(VENV)/.examples: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet -e ".[examples]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.examples
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no examples/train.py
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 tests

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests

pictures: $(VENV)/.dev
	MOTE_PICTURES=docs/pictures $(BIN)/python -m pytest -m slow tests/examples/test_app.py -k picture

style: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs results build dist *.egg-info
