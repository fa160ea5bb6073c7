{{/* The document that every service reads: the release and the values as they are. */}}
{{- define "holdfast.config" -}}
release:
  name: {{ .Release.Name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  fullname: {{ include "holdfast.fullname" . | quote }}
  version: {{ .Chart.Version | quote }}
values:
  {{- .Values | toYaml | nindent 2 }}
{{- end -}}
