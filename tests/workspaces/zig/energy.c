#include "energy.h"

double energy(double inertia, double speed) {
  return inertia * speed * speed / 2;
}
