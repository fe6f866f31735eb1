# The market's server programs in one image; the command chooses which (see docker-compose.yml).
FROM python:3.12-slim AS build
WORKDIR /build
COPY requirements-server.lock .
RUN python -m venv /opt/tokenyard \
    && /opt/tokenyard/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-server.lock

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin tokenyard
ENV PATH=/opt/tokenyard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DJANGO_SETTINGS_MODULE=marketplace.settings \
    STATIC_ROOT=/srv/tokenyard/staticfiles
WORKDIR /srv/tokenyard
COPY --from=build /opt/tokenyard /opt/tokenyard
COPY manage.py pyproject.toml LICENSE ./
COPY pricing pricing
COPY metering metering
COPY providers providers
COPY marketplace marketplace
# Nothing is read from these values; collecting static files needs settings that load.
RUN SECRET_KEY=only-to-collect-static-files-at-build-time MARKET_SIGNING_KEY=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= \
    DATABASE_URL=postgres://build:build@127.0.0.1:1/build PAYMENT_PROCESSOR=sandbox python manage.py collectstatic --noinput --verbosity 0
USER tokenyard
EXPOSE 8000 8001
CMD ["gunicorn", "marketplace.wsgi:application", "--bind", "0.0.0.0:8000", "--worker-class", "gthread", "--workers", "2", "--threads", "8", "--no-control-socket"]
