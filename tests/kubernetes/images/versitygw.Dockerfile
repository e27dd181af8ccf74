# Stands in for docker.io/versity/versitygw where no image registry is reached.
ARG BASE=python:3.12-slim
FROM ${BASE}
COPY versitygw /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/versitygw"]
