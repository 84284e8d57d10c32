# A CUDA runtime in which every command runs: a sweep here, the driver on a head node, and Ray's workers on the others.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# KubeRay's health checks call wget in the pod.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make python3 python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/gebm

# The environment first: it changes less often than the code.
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY gebm gebm
COPY pipeline pipeline
COPY conf conf
COPY sweeps sweeps
RUN PIP_NO_CACHE_DIR=1 make install EXTRAS=s3,gcs,postgres

# A new volume at /data gets this folder's owner. Any other user can run the image, by the name in USER.
RUN useradd --create-home --uid 10001 gebm && mkdir -p /data/stores /data/results && chown -R gebm /data
USER 10001
WORKDIR /data
ENV PATH=/opt/gebm/.venv/bin:$PATH \
    GEBM_STORES=/data/stores \
    HOME=/data \
    USER=gebm \
    PYTHONUNBUFFERED=1

ENTRYPOINT ["gebm"]
CMD ["--help"]
