{{- define "nextem.settingsName" -}}{{ .Release.Name }}-settings{{- end }}

{{- define "nextem.settingsChecksum" -}}
checksum/settings: {{ include (print $.Template.BasePath "/settings.yaml") . | sha256sum }}
{{- end }}

{{- define "nextem.keysGenerated" -}}
{{- if or .Values.keys.generate .Values.quickstart.enabled }}true{{ end }}
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

{{- /* The identity of a hook's job, there before it and gone after it: (dict "root" $ "name" … "events" … "rules" …). */ -}}
{{- define "nextem.hookIdentity" -}}
{{- $name := printf "%s-%s" .root.Release.Name .name }}
{{- $labels := include "nextem.labels" (dict "root" .root "component" "jobs") }}
{{- $hook := include "nextem.hook" (dict "events" .events "weight" -5) }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- $hook | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- $hook | nindent 4 }}
rules: {{- toYaml .rules | nindent 0 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- $hook | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
subjects:
- {kind: ServiceAccount, name: {{ $name }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{- /* What every CronJob says: one run at a time, and only the last one is kept. */ -}}
{{- define "nextem.oneAtATime" -}}
concurrencyPolicy: Forbid
startingDeadlineSeconds: 3600
successfulJobsHistoryLimit: 1
failedJobsHistoryLimit: 1
{{- end }}

{{- /* When topics and bucket are made: before everything else, or after the quickstart has brought them a home. */ -}}
{{- define "nextem.setupEvents" -}}
{{- if .Values.quickstart.enabled }}post-install,post-upgrade{{ else }}pre-install,pre-upgrade{{ end }}
{{- end }}
