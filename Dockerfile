# Server of a trained model on a CPU (docs/guides/serve.md, "In a container")
FROM python:3.13.5-slim-trixie AS build
# Index of packages with CPU builds of torch; without it, torch comes with the libraries of CUDA
ARG PIP_EXTRA_INDEX_URL=
# Extras of the package, such as serve,timm or serve,transformers for a model with such a backbone
ARG EXTRAS=serve
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE constraints.txt ./
COPY configs configs
COPY trainers trainers
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.13.5-slim-trixie
RUN useradd --create-home --uid 1000 hegraph
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/hegraph
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["hegraph", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--token-file", "/token"]
