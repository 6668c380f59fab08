# The workbench without a GPU, installed from its wheel.
#
#   docker build --tag fine-mem .
#   mkdir -p runs
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD/runs:/workbench/runs" fine-mem
#
# Rootless podman needs --userns keep-id as well. After the name of the image any command line of `finemem` may stand.
# `make release-check` builds and runs this, or carries it out as a script where neither is there, so
# it keeps to COPY, ENV, RUN, WORKDIR, USER, ENTRYPOINT and CMD, and to paths below /workbench.
FROM python:3.11-slim
ENV PATH=/workbench/environment/bin:$PATH
COPY . /workbench/source
RUN python -m venv /workbench/environment
RUN python -m pip install --quiet --constraint /workbench/source/constraints.txt uv
RUN python -m pip wheel --quiet --no-deps --wheel-dir /workbench/wheel /workbench/source
RUN /workbench/source/release/install.sh /workbench/environment/bin/python /workbench/wheel/*.whl
RUN finemem init /workbench/folder
ENV HOME=/workbench/home USER=workbench FINEMEM_RUNS_DIR=/workbench/runs
RUN mkdir /workbench/home /workbench/runs && chmod -R a+rwX /workbench/folder /workbench/home /workbench/runs
WORKDIR /workbench/folder
USER 1000
ENTRYPOINT ["finemem"]
CMD ["run"]
