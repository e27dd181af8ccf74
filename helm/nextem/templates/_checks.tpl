{{- /* What a schema cannot say: values that do not fit each other. */ -}}
{{- define "nextem.checks" -}}
{{- $w := .Values.analysis.workers }}
{{- if gt (int $w.min) (int $w.max) }}
{{- fail (printf "analysis.workers.min is %v, more than analysis.workers.max, which is %v" $w.min $w.max) }}
{{- end }}
{{- if and .Values.quickstart.enabled .Values.kafka.strimzi.enabled }}
{{- fail "quickstart.enabled and kafka.strimzi.enabled both bring a Kafka: choose one" }}
{{- end }}
{{- if and .Values.quickstart.enabled (or .Values.kafka.bootstrap (ne .Values.kafka.security.protocol "PLAINTEXT")) }}
{{- fail "quickstart.enabled brings a Kafka that speaks PLAINTEXT: leave kafka.bootstrap empty and kafka.security as it is" }}
{{- end }}
{{- if and .Values.quickstart.enabled (or .Values.store.address .Values.store.endpoint) }}
{{- fail "quickstart.enabled brings an S3 server: leave store.address and store.endpoint empty" }}
{{- end }}
{{- if and .Values.kafka.strimzi.enabled (gt (int .Values.kafka.topics.replication) (int .Values.kafka.strimzi.brokers)) }}
{{- fail (printf "kafka.topics.replication is %v, more than kafka.strimzi.brokers, which is %v" .Values.kafka.topics.replication .Values.kafka.strimzi.brokers) }}
{{- end }}
{{- range $what := list "kafka" "s3" }}
{{- $image := (get $.Values.quickstart $what).image }}
{{- if hasSuffix ":latest" $image }}
{{- fail (printf "quickstart.%s.image is %s: nobody would know what runs; give a version" $what $image) }}
{{- end }}
{{- end }}
{{- end }}
