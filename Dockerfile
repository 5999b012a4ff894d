# syntax=docker/dockerfile:1
# An image of rlhf-loop for clusters: versions of constraints.txt, with kubectl for the pod that steers.
#   docker build -t rlhf-loop .                                     # GPUs: PyPI's torch brings CUDA
#   docker build -t rlhf-loop --build-arg TORCH_INDEX=URL .         # CPUs: URL of PyTorch's index of CPU wheels
FROM registry.k8s.io/kubectl:v1.34.0 AS kubectl

FROM python:3.11-slim
ARG TORCH_INDEX=
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=kubectl /bin/kubectl /usr/local/bin/kubectl
WORKDIR /opt/rlhf-loop
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY rlhf_loop ./rlhf_loop
COPY recipes ./recipes
COPY reward_models ./reward_models
RUN pip install --no-cache-dir --constraint constraints.txt ".[server,endpoints,postgres]"
WORKDIR /rlhf
CMD ["rlhf-loop", "--help"]
