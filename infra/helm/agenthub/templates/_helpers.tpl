{{/* Names follow the release: agenthub-planner for the release `agenthub`. */}}
{{- define "agenthub.name" -}}
{{- printf "%s-%s" .root.Release.Name .process | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "agenthub.selector" -}}
app.kubernetes.io/name: agenthub
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .process }}
{{- end }}

{{- define "agenthub.labels" -}}
{{ include "agenthub.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "agenthub.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The port of probes and metrics, which for the API is that of the API. */}}
{{- define "agenthub.port" -}}
{{- if eq .process "api" }}8080{{ else }}9100{{ end }}
{{- end }}

{{- define "agenthub.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "agenthub.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* The environment of a process: what the chart decides, the values' config, and where the secrets are. */}}
{{- define "agenthub.environment" -}}
{{- $root := .root }}
{{- $_ := required "config.KAFKA_BROKERS is required: the bootstrap servers of Kafka" $root.Values.config.KAFKA_BROKERS }}
{{- $_ := required "config.AGENTHUB_STORAGE_URL is required: s3://bucket/prefix" $root.Values.config.AGENTHUB_STORAGE_URL }}
{{- $own := dict "AGENTHUB_CACHE_DIR" "/var/cache/agenthub" "AGENTHUB_API_ADDR" "0.0.0.0:8080" "AGENTHUB_PROBE_ADDR" "0.0.0.0:9100" }}
{{- range $name, $value := merge (dict) $own (.config | default dict) $root.Values.config }}
{{- /* A number of a values file is a float, which would be written with an exponent. */}}
{{- $text := kindIs "float64" $value | ternary (printf "%.0f" ($value | float64)) (toString $value) }}
{{- if ne $text "" }}
- name: {{ $name }}
  value: {{ $text | quote }}
{{- end }}
{{- end }}
{{- range $name, $key := $root.Values.secret.files }}
- name: {{ $name }}_FILE
  value: /run/agenthub/{{ $key }}
{{- end }}
{{- end }}

{{- define "agenthub.volumes" -}}
- name: secrets
  secret:
    secretName: {{ required "secret.name is required: an existing Secret" .Values.secret.name }}
    defaultMode: 0440
- name: tmp
  emptyDir: { sizeLimit: 64Mi }
- name: cache
  emptyDir: { sizeLimit: 512Mi }
{{- end }}

{{- define "agenthub.mounts" -}}
- { name: secrets, mountPath: /run/agenthub, readOnly: true }
- { name: tmp, mountPath: /tmp }
- { name: cache, mountPath: /var/cache/agenthub }
{{- end }}
