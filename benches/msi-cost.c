/*
 * What an MSI costs on KVM: KVM_SIGNAL_MSI against an irqfd that is written to. Both to a vector that waits already, in
 * turn, five rounds.
 *
 *   cc -O2 -o msi-cost benches/msi-cost.c && ./msi-cost
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 200000, ADDRESS = 0xfee00000, SVR = 0xf0 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0);
  struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
  if (ioctl(vm, KVM_ENABLE_CAP, &split) < 0)
    return perror("skipped: KVM"), 0;
  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0), event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  struct kvm_lapic_state lapic;
  ioctl(vcpu, KVM_GET_LAPIC, &lapic);
  memcpy(lapic.regs + SVR, &(uint32_t){0x1ff}, 4);
  struct {
    struct kvm_irq_routing head;
    struct kvm_irq_routing_entry entry;
  } routes = {{.nr = 1}, {.type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = ADDRESS, .data = 0x41}}};
  struct kvm_irqfd irqfd = {.fd = event, .gsi = 0};
  if (ioctl(vcpu, KVM_SET_LAPIC, &lapic) < 0 || ioctl(vm, KVM_SET_GSI_ROUTING, &routes) < 0 ||
      ioctl(vm, KVM_IRQFD, &irqfd) < 0)
    return perror("msi-cost"), 1;
  struct kvm_msi msi = {.address_lo = ADDRESS, .data = 0x42};
  for (int round = 0; round < 5; round++) {
    double start = now();
    for (int n = 0; n < COUNT; n++)
      ioctl(vm, KVM_SIGNAL_MSI, &msi);
    double middle = now();
    for (int n = 0; n < COUNT; n++)
      if (write(event, &(uint64_t){1}, 8) < 0)
        return perror("msi-cost: write"), 1;
    printf("KVM_SIGNAL_MSI %.0f ns, irqfd %.0f ns\n", (middle - start) / COUNT, (now() - middle) / COUNT);
  }
  ioctl(vcpu, KVM_GET_LAPIC, &lapic);
  uint32_t requests;
  memcpy(&requests, lapic.regs + 0x220, 4);
  return requests == 6 ? 0 : (puts("msi-cost: a message is missing"), 1);
}
