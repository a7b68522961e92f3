#include "pkg/handover/machine.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace bim::handover {
namespace {

// Whatever the state: who decides is answered, or it is remembered that they
// wait.
TEST(OwnerMachine, NobodyWhoDecidesIsForgotten) {
  constexpr OwnerEffect kAnswers[] = {
      OwnerEffect::kAnswerOk, OwnerEffect::kAnswerNothing,
      OwnerEffect::kAnswerDecided, OwnerEffect::kAnswerTimeout,
      OwnerEffect::kAnswerNotWritten};
  for (int stage = 0; stage <= static_cast<int>(OwnerStage::kGone); ++stage) {
    for (unsigned flags = 0; flags < 16; ++flags) {
      for (const OwnerEvent event :
           {OwnerEvent::kConfirm, OwnerEvent::kRollback}) {
        OwnerState state;
        state.stage = static_cast<OwnerStage>(stage);
        state.automatic = (flags & 1) != 0;
        state.connected = (flags & 2) != 0;
        state.ready = (flags & 4) != 0;
        state.down = (flags & 8) != 0;
        const OwnerEffects effects = Step(state, event);
        const bool answered =
            std::any_of(effects.begin(), effects.end(), [&](OwnerEffect e) {
              return std::find(std::begin(kAnswers), std::end(kAnswers), e) !=
                     std::end(kAnswers);
            });
        EXPECT_TRUE(
            answered ||
            (event == OwnerEvent::kConfirm ? state.confirm : state.rollback))
            << OwnerStageName(static_cast<OwnerStage>(stage)) << " " << flags;
      }
    }
  }
}

}  // namespace
}  // namespace bim::handover
