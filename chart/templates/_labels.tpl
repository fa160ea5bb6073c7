{{/* Labels that select the pods of a part; they never change. Call with
     (dict "root" $ "component" NAME). */}}
{{- define "holdfast.selectorLabels" -}}
app.kubernetes.io/name: holdfast
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels of an object. Call with (dict "root" $ "component" NAME). */}}
{{- define "holdfast.labels" -}}
{{ include "holdfast.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The metadata of a namespaced object. Call with
     (dict "root" $ "component" NAME "suffix" SUFFIX). */}}
{{- define "holdfast.metadata" -}}
name: {{ include "holdfast.fullname" .root }}-{{ .suffix | default .component }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "holdfast.labels" . | nindent 2 }}
{{- end -}}

{{/* metadata of a cluster-wide object: the namespace in its name keeps two releases apart. */}}
{{- define "holdfast.clusterMetadata" -}}
name: {{ include "holdfast.fullname" .root }}-{{ .suffix | default .component }}-{{ .root.Release.Namespace }}
labels:
  {{- include "holdfast.labels" . | nindent 2 }}
{{- end -}}
