# One image for both services: the command says which.
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE} AS build
# The address of a wheel index with torch for CPU alone makes the image some gigabytes smaller.
ARG TORCH_INDEX=""
ARG TORCH=torch==2.13.0
WORKDIR /source
RUN python -m venv /opt/everstep
ENV PATH=/opt/everstep/bin:$PATH
COPY constraints.txt .
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[datasets,postgres]"

FROM ${PYTHON_IMAGE}
RUN useradd --create-home --uid 10001 everstep \
    && install --directory --owner everstep /var/lib/everstep /data
COPY --from=build /opt/everstep /opt/everstep
ENV PATH=/opt/everstep/bin:$PATH PYTHONUNBUFFERED=1 EVERSTEP_LOG_FORMAT=json
USER everstep
WORKDIR /var/lib/everstep
CMD ["python", "-m", "control_plane"]
