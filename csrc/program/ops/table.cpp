#include "program/ops/entry.h"

namespace pylandscape {

#define PYLANDSCAPE_ENTRY(Kind, name) &ops::name,
const OpEntry* const kOpTable[] = {PYLANDSCAPE_EACH_OP(PYLANDSCAPE_ENTRY)};
#undef PYLANDSCAPE_ENTRY
#define PYLANDSCAPE_NAME(Kind, name) #name,
const char* const kOpNames[] = {PYLANDSCAPE_EACH_OP(PYLANDSCAPE_NAME)};
#undef PYLANDSCAPE_NAME
static_assert(sizeof(kOpTable) / sizeof(*kOpTable) == kOpKinds);
static_assert(sizeof(kOpNames) / sizeof(*kOpNames) == kOpKinds);

}  // namespace pylandscape
