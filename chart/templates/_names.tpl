{{/* Whether anything but the custom resource definitions is wanted; the older spelling counts. */}}
{{- define "holdfast.enabled" -}}
{{- $extension := .Values.global.networkfunctionextension -}}
{{- $legacy := .Values.networkFunctionExtension | default dict -}}
{{- if and .Values.enabled (or $extension.enableClusterRegistry (get $legacy "EnableManagedInClusterEdgeRegistry")) -}}
true
{{- end -}}
{{- end -}}

{{/* Size of the volume; the older spelling counts where the newer key has its default. */}}
{{- define "holdfast.storageSize" -}}
{{- $legacy := .Values.networkFunctionExtension | default dict -}}
{{- with get $legacy "EdgeRegistrySizeInGB" -}}
{{- printf "%dGi" (int64 .) -}}
{{- else -}}
{{- .Values.global.networkfunctionextension.clusterRegistry.storageSize -}}
{{- end -}}
{{- end -}}

{{/* F: prefix of the names of all objects; short enough for every suffix to fit into 63
     characters. A release's name may have dots, the name of a Service may not. */}}
{{- define "holdfast.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Replicas of a part without autoscaling. Call with (dict "part" PART "ha" BOOL "many" N). */}}
{{- define "holdfast.replicas" -}}
{{- if kindIs "invalid" .part.replicas -}}
{{- ternary .many 1 .ha -}}
{{- else -}}
{{- .part.replicas -}}
{{- end -}}
{{- end -}}

{{/* `replicas` of a part under an autoscaler: nothing, or what runs now, so that an upgrade never
     resets it. Call with (dict "root" $ "component" NAME). */}}
{{- define "holdfast.scaledReplicas" -}}
{{- $live := lookup "apps/v1" "Deployment" .root.Release.Namespace (printf "%s-%s" (include "holdfast.fullname" .root) .component) -}}
{{- with $live -}}
replicas: {{ min 5 (max 3 (.spec.replicas | int)) }}
{{- end -}}
{{- end -}}

{{/* A quantity in whole Gi; empty for units that Holdfast does not write. */}}
{{- define "holdfast.gibibytes" -}}
{{- $text := toString . -}}
{{- if hasSuffix "Gi" $text -}}
{{- trimSuffix "Gi" $text -}}
{{- else if hasSuffix "Ti" $text -}}
{{- mul 1024 (int64 (trimSuffix "Ti" $text)) -}}
{{- end -}}
{{- end -}}
