{{- define "nextem-edge.keys" -}}
{{ .Values.keysSecret | default (printf "nextem-keys-edge-%s" .Values.instrument) }}
{{- end }}

{{- define "nextem-edge.name" -}}
{{- if contains "edge" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-edge{{ end }}
{{- end }}

{{- define "nextem-edge.detector" -}}
{{- if .Values.detector }}{{ .Values.detector }}
{{- else if include "nextem.quickstart" . }}{{ .Release.Name }}-simulator:6342
{{- else }}{{ fail "detector is empty: give the detector's address, such as merlin.tem.example:6342 or dectris://HOST" }}
{{- end }}
{{- end }}

{{- define "nextem-edge.driver" -}}
{{- if .Values.driver }}{{ .Values.driver }}
{{- else if include "nextem.quickstart" . }}{{ .Release.Name }}-simulator:50061
{{- else }}{{ fail "driver is empty: give HOST:PORT of the service Instrument or a driver's address, or listenOnly: true" }}
{{- end }}
{{- end }}

{{- define "nextem-edge.steering" -}}
{{- if .Values.steering }}{{ .Values.steering }}
{{- else if include "nextem.quickstart" . }}{{ .Release.Name }}-steering:50051
{{- else }}{{ fail "steering is empty: give HOST:PORT of the steering service, or listenOnly: true" }}
{{- end }}
{{- end }}

{{- define "nextem-edge.store" -}}
{{- if or .Values.store.address (include "nextem.quickstart" .) }}true{{ end }}
{{- end }}
