/*
 * STAND-IN for libedgetpu.so.1. It is NOT the Edge TPU runtime, it computes NOTHING: every output byte of an
 * `edgetpu-custom-op` node is the sum of its input bytes plus the position. It exists to test how the gateway loads,
 * lists, refuses and reports a device, without the device.
 *
 * It speaks the two interfaces of the real library that the gateway uses: the external delegate entry points
 * (tflite_plugin_create_delegate) and the listing functions of edgetpu_c.h. The structures below repeat, field by
 * field, the beginning of those in tensorflow/lite/core/c/common.h (Apache-2.0), which have been stable for years.
 *
 * Knobs, read from the environment at each call:
 *   STANDIN_DEVICES    what is connected, e.g. "usb,usb,pci" (default "usb"; empty: nothing)
 *   STANDIN_DEVICES_FILE  a file with what is connected, instead: "usb 1". A device that was opened answers only while
 *                      the file says the very same; so writing "usb 2" is a device that was out and in again. While it
 *                      says "usb 1 hang", an inference does not come back
 *   STANDIN_FAIL_OPEN  opening fails, with this message
 *   STANDIN_LOG        a file that gets one line for each option given when a device is opened
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Status; /* kTfLiteOk = 0, kTfLiteError = 1 */

typedef struct { int size; int data[]; } IntArray;

typedef struct {
  int type;
  union { char *raw; } data;
  IntArray *dims;
  struct { float scale; int32_t zero_point; } params;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  void *delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct { int type; void *params; } quantization;
  void *sparsity;
  const IntArray *dims_signature;
} Tensor;

typedef struct {
  IntArray *inputs;
  IntArray *outputs;
  IntArray *intermediates;
  IntArray *temporaries;
  void *user_data;
  /* more follows that is not needed here */
} Node;

struct Context;

typedef struct {
  void *(*init)(struct Context *, const char *, size_t);
  void (*free)(struct Context *, void *);
  Status (*prepare)(struct Context *, Node *);
  Status (*invoke)(struct Context *, Node *);
  const char *(*profiling_string)(const struct Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *registration_external;
  void *async_kernel;
  uint64_t inplace_operator;
} Registration;

typedef struct Delegate {
  void *data;
  Status (*prepare)(struct Context *, struct Delegate *);
  void *copy_from_buffer;
  void *copy_to_buffer;
  void *free_buffer;
  int64_t flags;
  void *opaque_delegate_builder;
} Delegate;

typedef struct Context {
  size_t tensors_size;
  Status (*get_execution_plan)(struct Context *, IntArray **);
  Tensor *tensors;
  void *impl;
  void *resize_tensor;
  void *report_error;
  void *add_tensors;
  Status (*get_node_and_registration)(struct Context *, int, Node **, Registration **);
  Status (*replace_nodes)(struct Context *, Registration, const IntArray *, Delegate *);
  /* more follows that is not needed here */
} Context;

static const char CUSTOM_OP[] = "edgetpu-custom-op";

/* What is connected now; to be freed. */
static char *connected(void) {
  const char *knob = getenv("STANDIN_DEVICES");
  const char *name = getenv("STANDIN_DEVICES_FILE");
  if (!name) return strdup(knob ? knob : "usb");
  char *said = calloc(1, 256);
  FILE *file = fopen(name, "r");
  if (file && fread(said, 1, 255, file) == 0) said[0] = 0;
  if (file) fclose(file);
  return said;
}

/* TfLiteDelegateParams begins with the delegate; what is returned here is the node's user_data. */
static void *init_node(Context *context, const char *params, size_t length) {
  (void)context;
  (void)length;
  return *(void *const *)params;
}

static Status prepare_node(Context *context, Node *node) {
  (void)context;
  (void)node;
  return 0;
}

static Status invoke_node(Context *context, Node *node) {
  const Delegate *delegate = node->user_data;
  char *now = connected();
  while (strstr(now, " hang")) {
    free(now);
    usleep(20000);
    now = connected();
  }
  bool gone = getenv("STANDIN_DEVICES_FILE") && strcmp(now, delegate->data) != 0;
  free(now);
  if (gone) return 1; /* kTfLiteError */
  unsigned char sum = 0;
  for (int i = 0; i < node->inputs->size; i++) {
    int index = node->inputs->data[i];
    if (index < 0 || context->tensors[index].allocation_type == 1) continue; /* constants: kTfLiteMmapRo */
    for (size_t k = 0; k < context->tensors[index].bytes; k++) sum += (unsigned char)context->tensors[index].data.raw[k];
  }
  for (int i = 0; i < node->outputs->size; i++) {
    Tensor *out = &context->tensors[node->outputs->data[i]];
    for (size_t k = 0; k < out->bytes; k++) out->data.raw[k] = (char)(sum + k);
  }
  return 0;
}

static Status prepare_delegate(Context *context, Delegate *delegate) {
  IntArray *plan;
  if (context->get_execution_plan(context, &plan)) return 1;
  int count = plan->size;
  int *nodes = malloc(sizeof(int) * (size_t)(count + 1));
  memcpy(nodes, plan->data, sizeof(int) * (size_t)count); /* later calls invalidate the plan */
  IntArray *claimed = malloc(sizeof(IntArray) + sizeof(int) * (size_t)(count + 1));
  claimed->size = 0;
  for (int i = 0; i < count; i++) {
    Node *node;
    Registration *registration;
    if (context->get_node_and_registration(context, nodes[i], &node, &registration)) continue;
    if (registration->custom_name && strcmp(registration->custom_name, CUSTOM_OP) == 0)
      claimed->data[claimed->size++] = nodes[i];
  }
  Registration kernel;
  memset(&kernel, 0, sizeof kernel);
  kernel.init = init_node;
  kernel.prepare = prepare_node;
  kernel.invoke = invoke_node;
  kernel.custom_name = "StandInForEdgeTpu";
  kernel.version = 1;
  Status status = claimed->size ? context->replace_nodes(context, kernel, claimed, delegate) : 0;
  free(claimed);
  free(nodes);
  return status;
}

Delegate *tflite_plugin_create_delegate(const char *const *keys, const char *const *values, size_t options,
                                        void (*report_error)(const char *)) {
  const char *failure = getenv("STANDIN_FAIL_OPEN");
  if (failure) {
    if (report_error) report_error(failure);
    return NULL;
  }
  const char *log = getenv("STANDIN_LOG");
  FILE *file = log ? fopen(log, "a") : NULL;
  for (size_t i = 0; file && i < options; i++) fprintf(file, "%s=%s\n", keys[i], values[i]);
  if (file) fclose(file);
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->data = connected();
  delegate->prepare = prepare_delegate;
  delegate->flags = 1; /* kTfLiteDelegateFlagsAllowDynamicTensors, as the real library; with 0 it is refused */
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
  if (delegate) free(delegate->data);
  free(delegate);
}

struct edgetpu_device { int type; const char *path; };

struct edgetpu_device *edgetpu_list_devices(size_t *count) {
  char *listed = connected();
  listed[strcspn(listed, " \n")] = 0;
  struct edgetpu_device *devices = calloc(strlen(listed) + 1, sizeof *devices);
  *count = 0;
  for (char *kind = strtok(listed, ","); kind; kind = strtok(NULL, ",")) {
    bool usb = strcmp(kind, "usb") == 0;
    devices[*count].type = usb ? 1 : 0; /* EDGETPU_APEX_USB, EDGETPU_APEX_PCI */
    devices[*count].path = usb ? "/sys/bus/usb/devices/stand-in" : "/dev/apex_stand_in";
    (*count)++;
  }
  free(listed);
  if (*count) return devices;
  free(devices);
  return NULL;
}

void edgetpu_free_devices(struct edgetpu_device *devices) { free(devices); }

const char *edgetpu_version(void) { return "stand-in, not an Edge TPU runtime"; }
