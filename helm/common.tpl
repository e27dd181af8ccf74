{{- /* What both charts share; each has a symbolic link to this file. A template that is about one component takes
(dict "root" $ "component" "steering"). */ -}}

{{- define "nextem.selector" -}}
app.kubernetes.io/name: nextem
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "nextem.labels" -}}
{{ include "nextem.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: nextem
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "nextem.image" -}}
{{- $i := .root.Values.image -}}
{{- $digest := get ($i.digests | default dict) .component -}}
{{- if eq $i.tag "latest" }}{{ fail "image.tag is latest: nobody would know what runs; give a version, or leave it empty for the chart's" }}{{ end }}
{{- with $i.registry }}{{ trimSuffix "/" . }}/{{ end }}nextem-{{ .component }}
{{- if $digest }}@{{ $digest }}{{ else }}:{{ $i.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "nextem.podSecurity" -}}
automountServiceAccountToken: {{ .apiAccess | default false }}
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .uid | default 10001 }}
  runAsGroup: {{ .uid | default 10001 }}
  fsGroup: {{ .uid | default 10001 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "nextem.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "nextem.probes" -}}
startupProbe: {httpGet: {path: /startupz, port: health}, periodSeconds: 2, failureThreshold: 150}
readinessProbe: {httpGet: {path: /readyz, port: health}, periodSeconds: 5, timeoutSeconds: 3}
livenessProbe: {httpGet: {path: /livez, port: health}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
{{- end }}

{{- define "nextem.ports" -}}
- {name: health, containerPort: 8081}
{{- if .root.Values.telemetry.metrics.enabled }}
- {name: metrics, containerPort: 9464}
{{- end }}
{{- end }}

{{- /* Arguments that every process has; after the name of its command. */ -}}
{{- define "nextem.args" -}}
- --health-port=8081
- --health-host=0.0.0.0
- --log-format={{ .root.Values.telemetry.logFormat }}
{{- if .root.Values.telemetry.metrics.enabled }}
- --metrics-port=9464
- --metrics-host=0.0.0.0
{{- end }}
{{- end }}

{{- /* Whether Kafka, the store and the microscope are those of the quickstart. */ -}}
{{- define "nextem.quickstart" -}}
{{- if or (not .Chart.IsRoot) (dig "enabled" false (.Values.quickstart | default dict)) }}true{{ end }}
{{- end }}

{{- define "nextem.kafkaBootstrap" -}}
{{- if .Values.kafka.bootstrap }}{{ .Values.kafka.bootstrap }}
{{- else if include "nextem.quickstart" . }}{{ .Release.Name }}-kafka:9092
{{- else if dig "strimzi" "enabled" false .Values.kafka }}{{ .Release.Name }}-kafka-bootstrap:9093
{{- else }}{{ fail "kafka.bootstrap is empty: give HOST:PORT[,HOST:PORT] of the facility's Kafka (or quickstart.enabled, or kafka.strimzi.enabled)" }}
{{- end }}
{{- end }}

{{- define "nextem.kafkaArgs" -}}
- --log={{ if eq .root.Values.kafka.client "confluent-kafka" }}kafka+confluent{{ else }}kafka{{ end }}://{{ include "nextem.kafkaBootstrap" .root }}
{{- if include "nextem.kafkaSecured" .root }}
- --kafka-security=/etc/nextem/kafka-{{ .component }}.toml
{{- end }}
{{- end }}

{{- define "nextem.kafkaProtocol" -}}
{{- if dig "strimzi" "enabled" false .Values.kafka }}SASL_SSL{{ else }}{{ .Values.kafka.security.protocol }}{{ end }}
{{- end }}

{{- define "nextem.kafkaSecured" -}}
{{- if ne (include "nextem.kafkaProtocol" .) "PLAINTEXT" }}true{{ end }}
{{- end }}

{{- /* The Secret of a component's Kafka user; Strimzi names it as its KafkaUser. */ -}}
{{- define "nextem.kafkaSecret" -}}
{{- $user := get .root.Values.kafka.users .component | default dict -}}
{{- if $user.secret }}{{ $user.secret }}
{{- else if dig "strimzi" "enabled" false .root.Values.kafka }}{{ .root.Release.Name }}-{{ .component }}
{{- else }}{{ fail (printf "kafka.users.%s.secret is empty, but kafka.security.protocol is %s: name the existing Secret of its user" .component .root.Values.kafka.security.protocol) }}
{{- end }}
{{- end }}

{{- /* The file that --kafka-security reads: paths of secrets, never a secret. */ -}}
{{- define "nextem.kafkaSecurity" -}}
{{- $protocol := include "nextem.kafkaProtocol" .root -}}
{{- $user := get .root.Values.kafka.users .component | default dict -}}
protocol = {{ $protocol | quote }}
{{- if hasPrefix "SASL" $protocol }}
mechanism = {{ .root.Values.kafka.security.mechanism | quote }}
username = {{ $user.username | default (printf "%s-%s" .root.Release.Name .component) | quote }}
password_file = "/etc/nextem-kafka/password"
{{- end }}
{{- if hasSuffix "SSL" $protocol }}
{{- if include "nextem.kafkaCa" .root }}
ca_file = "/etc/nextem-kafka/broker-ca.crt"
{{- end }}
{{- if eq $protocol "SSL" }}
certificate_file = "/etc/nextem-kafka/user.crt"
key_file = "/etc/nextem-kafka/user.key"
{{- end }}
{{- end }}
{{- end }}

{{- define "nextem.kafkaCa" -}}
{{- if .Values.kafka.security.caSecret.name }}{{ .Values.kafka.security.caSecret.name }}
{{- else if dig "strimzi" "enabled" false .Values.kafka }}{{ .Release.Name }}-cluster-ca-cert
{{- end }}
{{- end }}

{{- define "nextem.kafkaVolume" -}}
{{- if include "nextem.kafkaSecured" .root }}
- name: kafka
  projected:
    sources:
    - secret: {name: {{ include "nextem.kafkaSecret" . }}}
    {{- with include "nextem.kafkaCa" .root }}
    - secret:
        name: {{ . }}
        items: [{key: {{ $.root.Values.kafka.security.caSecret.key }}, path: broker-ca.crt}]
    {{- end }}
{{- end }}
{{- end }}

{{- define "nextem.storeAddress" -}}
{{- if .Values.store.address }}{{ .Values.store.address }}
{{- else if include "nextem.quickstart" . }}s3://nextem
{{- else }}{{ fail "store.address is empty: give s3://BUCKET or s3://BUCKET/PREFIX (or quickstart.enabled)" }}
{{- end }}
{{- end }}

{{- define "nextem.storeEndpoint" -}}
{{- if .Values.store.endpoint }}{{ .Values.store.endpoint }}
{{- else if include "nextem.quickstart" . }}http://{{ .Release.Name }}-s3:7070
{{- end }}
{{- end }}

{{- define "nextem.storeSecret" -}}
{{- if .Values.store.credentialsSecret.name }}{{ .Values.store.credentialsSecret.name }}
{{- else if include "nextem.quickstart" . }}{{ .Release.Name }}-s3
{{- end }}
{{- end }}

{{- define "nextem.storeEnv" -}}
{{- $store := .root.Values.store -}}
{{- with include "nextem.storeEndpoint" .root }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- if hasPrefix "http://" . }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
{{- end }}
- {name: AWS_REGION, value: {{ $store.region | quote }}}
{{- with include "nextem.storeSecret" .root }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $store.credentialsSecret.accessKeyId }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $store.credentialsSecret.secretAccessKey }}}}
{{- end }}
{{- if $store.caSecret.name }}
- {name: AWS_CA_BUNDLE, value: /etc/nextem-store/ca.crt}
{{- end }}
{{- end }}

{{- define "nextem.storeVolume" -}}
{{- with .root.Values.store.caSecret }}
{{- if .name }}
- name: store-ca
  secret:
    secretName: {{ .name }}
    items: [{key: {{ .key }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}

{{- define "nextem.env" -}}
- {name: NEXTEM_HOME, value: /var/lib/nextem}
- {name: NEXTEM_CONFIG, value: /etc/nextem/nextem.toml}
{{- with .root.Values.telemetry.otlp }}
{{- if .endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
{{- if .headersSecret.name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .headersSecret.name }}, key: {{ .headersSecret.key }}}}
{{- end }}
{{- if .caSecret.name }}
- {name: OTEL_EXPORTER_OTLP_CERTIFICATE, value: /etc/nextem-otlp/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "nextem.otlpVolume" -}}
{{- with .root.Values.telemetry.otlp }}
{{- if and .endpoint .caSecret.name }}
- name: otlp-ca
  secret:
    secretName: {{ .caSecret.name }}
    items: [{key: {{ .caSecret.key }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}

{{- /* Mounts that every process has; the volumes beside them are nextem.volumes. */ -}}
{{- define "nextem.mounts" -}}
- {name: settings, mountPath: /etc/nextem, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .keys }}
- {name: keys, mountPath: /etc/nextem-keys, readOnly: true}
{{- end }}
{{- if include "nextem.kafkaSecured" .root }}
- {name: kafka, mountPath: /etc/nextem-kafka, readOnly: true}
{{- end }}
{{- if and .store .root.Values.store.caSecret.name }}
- {name: store-ca, mountPath: /etc/nextem-store, readOnly: true}
{{- end }}
{{- if include "nextem.otlpVolume" . }}
- {name: otlp-ca, mountPath: /etc/nextem-otlp, readOnly: true}
{{- end }}
{{- end }}

{{- define "nextem.volumes" -}}
- name: settings
  configMap: {name: {{ .settings }}}
- name: tmp
  emptyDir: {}
{{- with .keys }}
- name: keys
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- include "nextem.kafkaVolume" . }}
{{- if .store }}
{{- include "nextem.storeVolume" . }}
{{- end }}
{{- include "nextem.otlpVolume" . }}
{{- end }}

{{- /* One table of nextem.toml; JSON's scalars and lists are TOML's. */ -}}
{{- define "nextem.table" -}}
[{{ .name }}]
{{- range $key, $value := .settings }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{- end }}

{{- /* A PodMonitor on the pods that (dict "root" $ "name" … "match" labels) says. */ -}}
{{- define "nextem.podMonitor" -}}
{{- $m := .root.Values.telemetry.podMonitors -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .name }}
  labels:
    {{- include "nextem.labels" (dict "root" .root "component" "monitoring") | nindent 4 }}
    {{- with $m.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels: {{- .match | nindent 6 }}
  podMetricsEndpoints:
  - port: metrics
    interval: {{ $m.interval }}
    relabelings:     # KubeRay calls a port of its own so too
    - {action: keep, sourceLabels: [__meta_kubernetes_pod_container_port_number], regex: "9464"}
{{- end }}
