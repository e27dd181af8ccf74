{{- /* Rules of NetworkPolicies that both charts share, by symbolic links as common.tpl. */ -}}

{{- /* Egress that most components need: names, and telemetry if it is sent. */ -}}
{{- define "nextem.egressBase" -}}
- to:
  - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
    podSelector: {matchLabels: {{ toJson .Values.networkPolicy.dnsLabels }}}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- if .Values.telemetry.otlp.endpoint }}
- to: {{ toJson .Values.networkPolicy.otlp.to }}
  ports: {{ include "nextem.tcp" .Values.networkPolicy.otlp.ports }}
{{- end }}
{{- end }}

{{- define "nextem.tcp" -}}
[{{ range $i, $port := . }}{{ if $i }}, {{ end }}{protocol: TCP, port: {{ $port }}}{{ end }}]
{{- end }}

{{- define "nextem.egressKafka" -}}
{{- if and (not .Values.kafka.bootstrap) (include "nextem.quickstart" .) }}
- to: [{podSelector: {matchLabels: {app.kubernetes.io/instance: {{ .Release.Name }}, app.kubernetes.io/component: kafka}}}]
  ports: [{protocol: TCP, port: 9092}]
{{- else }}
- to: {{ toJson .Values.networkPolicy.kafka.to }}
  ports: {{ include "nextem.tcp" .Values.networkPolicy.kafka.ports }}
{{- end }}
{{- end }}

{{- define "nextem.egressStore" -}}
{{- if and (not .Values.store.endpoint) (include "nextem.quickstart" .) }}
- to: [{podSelector: {matchLabels: {app.kubernetes.io/instance: {{ .Release.Name }}, app.kubernetes.io/component: s3}}}]
  ports: [{protocol: TCP, port: 7070}]
{{- else }}
- to: {{ toJson .Values.networkPolicy.store.to }}
  ports: {{ include "nextem.tcp" .Values.networkPolicy.store.ports }}
{{- end }}
{{- end }}

{{- define "nextem.ingressMetrics" -}}
{{- if and .root.Values.telemetry.metrics.enabled .root.Values.networkPolicy.monitoring.from }}
- from: {{ toJson .root.Values.networkPolicy.monitoring.from }}
  ports: [{protocol: TCP, port: 9464}]
{{- end }}
{{- end }}
