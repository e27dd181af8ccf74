{{- define "nextem.settingsName" -}}{{ .Release.Name }}-settings{{- end }}

{{- define "nextem.settingsChecksum" -}}
checksum/settings: {{ include (print $.Template.BasePath "/settings.yaml") . | sha256sum }}
{{- end }}

{{- define "nextem.keysGenerated" -}}
{{- if or .Values.keys.generate .Values.quickstart.enabled }}true{{ end }}
{{- end }}

{{- /* The arguments of `nextem operator bootstrap-keys` that say for whom there are keys. */ -}}
{{- define "nextem.keysArgs" -}}
- operator
- bootstrap-keys
- --namespace={{ .Release.Namespace }}
{{- range .Values.keys.instruments }}
- --instrument={{ . }}
{{- end }}
{{- if .Values.quickstart.enabled }}
- --driver-host={{ .Release.Name }}-simulator
{{- end }}
{{- end }}

{{- /* Rules on the Secrets that bootstrap-keys makes, and no others: (dict "root" $ "verbs" …). */ -}}
{{- define "nextem.keysRules" -}}
- apiGroups: [""]
  resources: [secrets]
  resourceNames:
  {{- range list "authority" "steering" "operator" "client" }}
  - nextem-keys-{{ . }}
  {{- end }}
  {{- range .root.Values.keys.instruments }}
  - nextem-keys-edge-{{ . }}
  {{- end }}
  {{- if .root.Values.quickstart.enabled }}
  - nextem-keys-driver
  {{- end }}
  verbs: {{ toJson .verbs }}
{{- end }}

{{- /* What a claim of storage says: (dict "size" … "storageClass" …). */ -}}
{{- define "nextem.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end }}

{{- /* Annotations of a hook: (dict "events" "pre-install,pre-upgrade" "weight" 0). */ -}}
{{- define "nextem.hook" -}}
helm.sh/hook: {{ .events }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
{{- end }}

{{- /* The identity of a job: (dict "root" $ "component" … "name" … "rules" YAML). That of a hook, with "events", is
there before it and gone after it. */ -}}
{{- define "nextem.jobIdentity" -}}
{{- $name := printf "%s-%s" .root.Release.Name .name }}
{{- $labels := include "nextem.labels" . }}
{{- $hook := "" }}
{{- with .events }}{{ $hook = include "nextem.hook" (dict "events" . "weight" -5) }}{{ end }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  {{- with $hook }}
  annotations: {{- . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  {{- with $hook }}
  annotations: {{- . | nindent 4 }}
  {{- end }}
rules: {{- .rules | nindent 0 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  {{- with $hook }}
  annotations: {{- . | nindent 4 }}
  {{- end }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
subjects:
- {kind: ServiceAccount, name: {{ $name }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{- /* What every CronJob says: one run at a time, and only the last one is kept. */ -}}
{{- define "nextem.oneAtATime" -}}
concurrencyPolicy: Forbid
successfulJobsHistoryLimit: 1
failedJobsHistoryLimit: 1
{{- end }}

{{- /* When topics and bucket are made: before everything else, or after the quickstart has brought them a home. */ -}}
{{- define "nextem.setupEvents" -}}
{{- if .Values.quickstart.enabled }}post-install,post-upgrade{{ else }}pre-install,pre-upgrade{{ end }}
{{- end }}

{{- /* Whether an uninstall takes the topics away: last, when nothing of ours writes any more. A Kafka of the chart's own
takes its topics with it. */ -}}
{{- define "nextem.topicsRemoved" -}}
{{- if and .Values.kafka.topics.deleteOnUninstall (not .Values.kafka.strimzi.enabled) (not .Values.quickstart.enabled) }}true{{ end }}
{{- end }}
