// Every order of what can happen in a hand-over: steps, messages that arrive
// late or never, crashes, stops, restarts and decisions on either side, all
// explored. The machines are the real ones; the world around them (a disk with
// its lock and its record, a connection) is modelled here.

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <unordered_set>
#include <vector>

#include "pkg/handover/machine.h"

namespace bim::handover {
namespace {

using OE = OwnerEvent;
using OX = OwnerEffect;
using CE = CandidateEvent;
using CX = CandidateEffect;

enum class Lock { kFree, kOwner, kCandidate };
// What the process of a side is.
enum class Life { kDown, kRunning, kStopped };

// A side's process that has no lock and no conversation: the owner after a
// crash, before it may claim again.
struct Waiting {
  Intent intent = Intent::kNone;
  friend auto operator<=>(const Waiting&, const Waiting&) = default;
};

struct World {
  // The disk.
  Lock lock = Lock::kOwner;
  int phase = -1;  // -1: no record, else HandoverPhase
  bool recorded_automatic = false;
  bool image = true;  // the record of a ready image
  // Who said yes to a decision, as a caller was told.
  bool told_confirmed = false;
  bool told_rolled_back = false;
  // A candidate took what was not decided for it.
  bool claimed_in_vain = false;
  // The processes.
  Life owner_life = Life::kRunning;
  Life candidate_life = Life::kRunning;
  bool owner_owns = true;  // the process believes it does (its own lock)
  OwnerState owner;
  Waiting waiting;  // of an owner that was started again
  CandidateState candidate;
  bool candidate_load = false;   // it has to load
  bool candidate_claim = false;  // it has to claim
  int pending = 0;               // the owner's write: 1 + phase; 0: none
  bool release = false;          // the owner has to release
  bool lease = false;            // runs
  bool deadline = false;
  // The connection: what is under way in each direction.
  bool open = false;           // as the candidate sees it
  bool open_at_owner = false;  // as the owner sees it
  std::vector<CX> to_owner;
  std::vector<OX> to_candidate;
  // What may still happen.
  int crashes = 0;
  int decisions = 0;
  bool automatic = false;

  auto Key() const {
    return std::tie(lock, phase, recorded_automatic, image, told_confirmed,
                    told_rolled_back, claimed_in_vain, owner_life,
                    candidate_life, owner_owns, owner, waiting, candidate,
                    candidate_load, candidate_claim, pending, release, lease,
                    deadline, open, open_at_owner, to_owner, to_candidate,
                    crashes, decisions, automatic);
  }
  bool operator<(const World& other) const { return Key() < other.Key(); }
};

std::optional<HandoverPhase> PhaseOf(const World& world) {
  if (world.phase < 0) return std::nullopt;
  return static_cast<HandoverPhase>(world.phase);
}

store::ClaimVerdict MayClaim(const World& world, Role role) {
  std::optional<store::HandoverRecord> record;
  if (const auto phase = PhaseOf(world)) {
    record.emplace();
    record->owner = "owner";
    record->candidate = "candidate";
    record->phase = *phase;
    record->automatic = world.recorded_automatic;
  }
  return store::MayClaim(record, role == Role::kOwner ? "owner" : "candidate");
}

class Explorer {
 public:
  explicit Explorer(bool automatic, int crashes, int decisions) {
    World start;
    start.automatic = automatic;
    start.crashes = crashes;
    start.decisions = decisions;
    Reach(start);
    while (!queue_.empty()) {
      const World world = queue_.front();
      queue_.pop_front();
      Expand(world);
    }
  }
  const std::set<World>& seen() const { return seen_; }

  // --- the world's steps, each from a world to its successors

  static void OwnerDoes(World& world, const OwnerEffects& effects) {
    for (const OX effect : effects) {
      switch (effect) {
        case OX::kWriteBegun:
          world.pending = 1 + static_cast<int>(HandoverPhase::kBegun);
          break;
        case OX::kWriteConfirmed:
          world.pending = 1 + static_cast<int>(HandoverPhase::kConfirmed);
          break;
        case OX::kWriteRolledBack:
          world.pending = 1 + static_cast<int>(HandoverPhase::kRolledBack);
          break;
        case OX::kTellBegun:
        case OX::kTellRefused:
        case OX::kAsk:
        case OX::kTellWithdrawn:
        case OX::kTellReleased:
        case OX::kTellRolledBack:
          if (world.open_at_owner) world.to_candidate.push_back(effect);
          break;
        case OX::kRelease:
          world.release = true;
          break;
        case OX::kStartDeadline:
          world.deadline = true;
          break;
        case OX::kStartLease:
          world.lease = true;
          break;
        case OX::kExit:
          world.owner_life = Life::kDown;
          world.owner = {};
          world.owner_owns = false;
          world.open_at_owner = false;  // what was sent arrives
          world.to_owner.clear();
          break;
        case OX::kDrain:
        case OX::kResume:  // see OwnerStep
        case OX::kEndTalk:
        case OX::kAnswerOk:
        case OX::kAnswerNothing:
        case OX::kAnswerDecided:
        case OX::kAnswerTimeout:
        case OX::kAnswerNotWritten:
          break;
      }
    }
  }

  static void OwnerStep(World& world, OE event) {
    const bool confirming = world.owner.confirm;
    const bool undoing = world.owner.rollback;
    const OwnerEffects effects = Step(world.owner, event);
    for (const OX effect : effects) {
      if (effect == OX::kAnswerOk) {
        if (confirming || event == OE::kConfirm) world.told_confirmed = true;
        if (undoing || event == OE::kRollback) world.told_rolled_back = true;
      }
    }
    if (!world.owner.confirm) world.deadline = false;
    OwnerDoes(world, effects);
    if (std::find(effects.begin(), effects.end(), OX::kResume) !=
        effects.end()) {
      OwnerStep(world, OE::kResumed);
    }
  }

  static void CandidateStep(World& world, CE event) {
    const Intent intent = world.candidate.intent;
    for (const CX effect : Step(world.candidate, event)) {
      switch (effect) {
        case CX::kSendBegin:
          world.open = world.open_at_owner = Listens(world);
          if (world.open) {
            world.to_owner = {effect};
          }
          break;
        case CX::kSendReady:
        case CX::kSendAccepted:
        case CX::kSendConfirm:
        case CX::kSendRollback:
        case CX::kSendOwned:
          if (world.open) world.to_owner.push_back(effect);
          break;
        case CX::kLoad:
          world.candidate_load = true;
          break;
        case CX::kClaim:
          world.candidate_claim = true;
          break;
        case CX::kAnswerOk:
          if (intent == Intent::kConfirm || event == CE::kConfirm) {
            // (Without a hand-over it says that it owns.)
            world.told_confirmed |= world.phase >= 0;
          } else if (intent == Intent::kRollback || event == CE::kRollback) {
            world.told_rolled_back = true;
          }
          break;
        default:
          break;
      }
    }
  }

  // Whether a candidate can connect: the socket is the owner's of the lock.
  static bool Listens(const World& world) {
    return world.owner_life != Life::kDown && world.owner_owns;
  }

  static void CrashOwner(World& world) {
    world.owner_life = Life::kDown;
    world.owner = {};
    world.waiting = {};
    world.owner_owns = false;
    if (world.lock == Lock::kOwner) world.lock = Lock::kFree;
    world.pending = 0;
    world.release = world.lease = world.deadline = false;
    world.open_at_owner = false;
    world.to_owner.clear();
  }
  static void CrashCandidate(World& world) {
    world.candidate_life = Life::kDown;
    world.candidate = {};
    if (world.lock == Lock::kCandidate) world.lock = Lock::kFree;
    world.candidate_load = world.candidate_claim = false;
    world.open = false;
    world.to_candidate.clear();
  }

  // A process that is started: claims when it may.
  static void StartOwner(World& world) {
    world.owner_life = Life::kRunning;
    ClaimByOwner(world);
  }
  static void ClaimByOwner(World& world) {
    if (world.lock != Lock::kFree ||
        MayClaim(world, Role::kOwner) != store::ClaimVerdict::kYes) {
      return;
    }
    world.lock = Lock::kOwner;
    world.owner_owns = true;
    world.owner = {};
    world.waiting = {};
  }

  static void OwnerWrites(World& world) {
    world.phase = world.pending - 1;
    if (world.phase != static_cast<int>(HandoverPhase::kBegun)) return;
    // A new one: what was said of the last one counts no more.
    world.recorded_automatic = world.owner.automatic;
    world.told_confirmed = world.told_rolled_back = false;
  }
  static void CandidateClaims(World& world) {
    world.lock = Lock::kCandidate;
    if (world.phase == static_cast<int>(HandoverPhase::kBegun) ||
        world.phase == static_cast<int>(HandoverPhase::kRolledBack)) {
      world.claimed_in_vain |= !world.recorded_automatic;
    }
  }

  // The candidate's look at a disk whose lock may be free.
  static bool CandidateLooks(World& world) {
    if (world.lock != Lock::kFree) return false;
    if (const auto write =
            WriteWhenFree(Role::kCandidate, PhaseOf(world),
                          world.recorded_automatic, world.candidate.intent)) {
      world.phase = static_cast<int>(*write);
    }
    const auto phase = PhaseOf(world);
    CandidateStep(world, !phase                           ? CE::kFreeNone
                         : phase == HandoverPhase::kBegun ? CE::kFreeBegun
                         : phase == HandoverPhase::kConfirmed
                             ? CE::kFreeConfirmed
                             : CE::kFreeRolledBack);
    return true;
  }
  static bool OwnerLooks(World& world) {
    if (world.lock != Lock::kFree) return false;
    if (const auto write =
            WriteWhenFree(Role::kOwner, PhaseOf(world),
                          world.recorded_automatic, world.waiting.intent)) {
      world.phase = static_cast<int>(*write);
      if (world.waiting.intent == Intent::kConfirm) world.told_confirmed = true;
      if (world.waiting.intent == Intent::kRollback) {
        world.told_rolled_back = true;
      }
    }
    world.waiting.intent = Intent::kNone;
    ClaimByOwner(world);
    return true;
  }

  static CE Arrived(OX message) {
    switch (message) {
      case OX::kTellBegun:
        return CE::kBegun;
      case OX::kTellRefused:
        return CE::kRefused;
      case OX::kAsk:
        return CE::kAsked;
      case OX::kTellWithdrawn:
        return CE::kWithdrawn;
      case OX::kTellReleased:
        return CE::kReleased;
      default:
        return CE::kRolledBack;
    }
  }
  static OE Arrived(CX message, bool automatic) {
    switch (message) {
      case CX::kSendBegin:
        return automatic ? OE::kBeginAutomatic : OE::kBegin;
      case CX::kSendReady:
        return OE::kReady;
      case CX::kSendAccepted:
        return OE::kAccepted;
      case CX::kSendConfirm:
        return OE::kConfirm;
      case CX::kSendRollback:
        return OE::kRollback;
      default:
        return OE::kOwned;
    }
  }

  // All that may come next without anybody failing or deciding.
  static std::vector<World> Progress(const World& world) {
    std::vector<World> next;
    const auto add = [&](auto&& change) {
      World made = world;
      change(made);
      next.push_back(std::move(made));
    };
    const bool owner_runs = world.owner_life == Life::kRunning;
    const bool candidate_runs = world.candidate_life == Life::kRunning;
    if (owner_runs && world.owner_owns) {
      if (world.pending != 0) {
        add([](World& w) {
          OwnerWrites(w);
          w.pending = 0;
          OwnerStep(w, OE::kWritten);
        });
      }
      if (world.release) {
        add([](World& w) {
          w.release = false;
          w.lock = Lock::kFree;
          OwnerStep(w, OE::kReleased);
        });
      }
      if (!world.to_owner.empty() && world.open_at_owner) {
        add([](World& w) {
          const CX message = w.to_owner.front();
          w.to_owner.erase(w.to_owner.begin());
          OwnerStep(w, Arrived(message, w.automatic));
        });
      }
      if (world.open_at_owner && !world.open && world.to_owner.empty()) {
        add([](World& w) {
          w.open_at_owner = false;
          OwnerStep(w, OE::kDisconnected);
        });
      }
    }
    if (owner_runs && !world.owner_owns && world.lock == Lock::kFree) {
      add([](World& w) { OwnerLooks(w); });
    }
    if (candidate_runs) {
      if (world.candidate_load) {
        add([](World& w) {
          w.candidate_load = false;
          CandidateStep(w, CE::kLoaded);
        });
      }
      if (world.candidate_claim) {
        add([](World& w) {
          w.candidate_claim = false;
          if (w.lock == Lock::kFree &&
              MayClaim(w, Role::kCandidate) == store::ClaimVerdict::kYes) {
            CandidateClaims(w);
            CandidateStep(w, CE::kClaimed);
          } else {
            CandidateStep(w, CE::kNotClaimed);
          }
        });
      }
      if (!world.to_candidate.empty() && world.open) {
        add([](World& w) {
          const OX message = w.to_candidate.front();
          w.to_candidate.erase(w.to_candidate.begin());
          CandidateStep(w, Arrived(message));
        });
      }
      if (world.open && !world.open_at_owner && world.to_candidate.empty()) {
        add([](World& w) {
          w.open = false;
          CandidateStep(w, CE::kDisconnected);
        });
      }
      const CandidateStage stage = world.candidate.stage;
      if (stage == CandidateStage::kLost ||
          stage == CandidateStage::kInterrupted) {
        if (world.lock == Lock::kFree) {
          add([](World& w) { CandidateLooks(w); });
        } else if (!world.open && Listens(world) && owner_runs) {
          // Back in the conversation: the owner sees the old end first.
          add([](World& w) {
            if (w.open_at_owner) {
              w.open_at_owner = false;
              OwnerStep(w, OE::kDisconnected);
            }
            w.open = w.open_at_owner = true;
            w.to_owner = {CX::kSendBegin};
            w.to_candidate.clear();
          });
        }
      }
      if (stage == CandidateStage::kBeginning && !world.open) {
        add([](World& w) { CandidateStep(w, CE::kDisconnected); });
      }
      if (stage == CandidateStage::kIdle && world.lock == Lock::kFree &&
          MayClaim(world, Role::kCandidate) == store::ClaimVerdict::kYes) {
        // A manager as any other: what is free and its own is taken.
        add([](World& w) {
          CandidateClaims(w);
          w.candidate = {};
          w.candidate.stage = CandidateStage::kOwning;
        });
      }
    }
    return next;
  }

  // Time passes for who waits.
  static std::vector<World> Timers(const World& world) {
    std::vector<World> next;
    if (world.owner_life != Life::kRunning || !world.owner_owns) return next;
    if (world.deadline) {
      World made = world;
      made.deadline = false;
      OwnerStep(made, OE::kDeadline);
      next.push_back(made);
    }
    // Silence: it is gone, or it is stopped.
    const bool silent = world.open_at_owner
                            ? world.candidate_life != Life::kRunning
                            : world.lease;
    const auto stage = world.owner.stage;
    if (silent && stage != OwnerStage::kSteady && stage != OwnerStage::kGone) {
      World made = world;
      made.lease = false;
      made.open_at_owner = false;
      made.to_owner.clear();
      OwnerStep(made, OE::kLeaseEnded);
      next.push_back(made);
    }
    return next;
  }

 private:
  void Reach(World world) {
    if (seen_.insert(world).second) queue_.push_back(std::move(world));
  }

  void Expand(const World& world) {
    for (World& next : Progress(world)) Reach(std::move(next));
    for (World& next : Timers(world)) Reach(std::move(next));
    const auto add = [&](auto&& change) {
      World made = world;
      change(made);
      Reach(std::move(made));
    };
    const bool owner_runs = world.owner_life == Life::kRunning;
    const bool candidate_runs = world.candidate_life == Life::kRunning;
    // Started again, always.
    if (world.owner_life == Life::kDown) {
      add([](World& w) { StartOwner(w); });
    }
    if (world.candidate_life == Life::kDown) {
      add([](World& w) { w.candidate_life = Life::kRunning; });
    }
    if (world.owner_life == Life::kStopped) {
      add([](World& w) { w.owner_life = Life::kRunning; });
    }
    if (world.candidate_life == Life::kStopped) {
      add([](World& w) { w.candidate_life = Life::kRunning; });
    }
    // Begins, or begins again after a restart.
    if (candidate_runs && world.candidate.stage == CandidateStage::kIdle &&
        world.lock == Lock::kOwner && !world.open) {
      add([](World& w) {
        CandidateStep(w, w.automatic ? CE::kBeginAutomatic : CE::kBegin);
      });
    }
    // One that was started again finds its claim on the disk.
    if (candidate_runs && world.candidate.stage == CandidateStage::kIdle &&
        world.lock == Lock::kFree && world.phase == 0) {
      add([](World& w) {
        w.candidate.stage = CandidateStage::kLost;
        w.candidate.automatic = w.recorded_automatic;
      });
    }
    if (world.crashes > 0) {
      if (world.owner_life != Life::kDown) {
        add([](World& w) {
          --w.crashes;
          CrashOwner(w);
        });
        if (owner_runs) {
          add([](World& w) {
            --w.crashes;
            w.owner_life = Life::kStopped;
          });
        }
        // Between a write and what follows it.
        if (owner_runs && world.pending != 0) {
          add([](World& w) {
            --w.crashes;
            OwnerWrites(w);
            CrashOwner(w);
          });
        }
      }
      if (world.candidate_life != Life::kDown) {
        add([](World& w) {
          --w.crashes;
          CrashCandidate(w);
        });
        if (candidate_runs) {
          add([](World& w) {
            --w.crashes;
            w.candidate_life = Life::kStopped;
          });
        }
        // Between its decision and its claim.
        if (candidate_runs && world.lock == Lock::kFree &&
            (world.candidate.stage == CandidateStage::kLost ||
             world.candidate.stage == CandidateStage::kInterrupted)) {
          add([](World& w) {
            --w.crashes;
            CandidateLooks(w);
            CrashCandidate(w);
          });
        }
      }
      // The connection breaks; what was under way is lost.
      if ((world.open || world.open_at_owner) &&
          (owner_runs || candidate_runs)) {
        add([](World& w) {
          --w.crashes;
          w.to_owner.clear();
          w.to_candidate.clear();
          // One that is stopped sees it later.
          const bool owner_sees =
              w.open_at_owner && w.owner_life == Life::kRunning;
          const bool candidate_sees =
              w.open && w.candidate_life == Life::kRunning;
          if (owner_sees) {
            w.open_at_owner = false;
            OwnerStep(w, OE::kDisconnected);
          }
          if (candidate_sees) {
            w.open = false;
            CandidateStep(w, CE::kDisconnected);
          }
        });
      }
    }
    if (world.decisions > 0) {
      for (const bool confirm : {true, false}) {
        if (owner_runs && world.owner_owns) {
          add([&](World& w) {
            --w.decisions;
            OwnerStep(w, confirm ? OE::kConfirm : OE::kRollback);
          });
        }
        if (owner_runs && !world.owner_owns && world.phase == 0) {
          add([&](World& w) {
            --w.decisions;
            w.waiting.intent = confirm ? Intent::kConfirm : Intent::kRollback;
          });
        }
        if (candidate_runs) {
          add([&](World& w) {
            --w.decisions;
            CandidateStep(w, confirm ? CE::kConfirm : CE::kRollback);
          });
        }
      }
    }
    // A disk that refuses a write.
    if (owner_runs && world.pending != 0 && world.crashes > 0) {
      add([](World& w) {
        --w.crashes;
        w.pending = 0;
        OwnerStep(w, OE::kNotWritten);
      });
    }
  }

  std::set<World> seen_;
  std::deque<World> queue_;
};

std::string Show(const World& w) {
  return "lock " + std::to_string(static_cast<int>(w.lock)) + " phase " +
         std::to_string(w.phase) + " owner " +
         std::to_string(static_cast<int>(w.owner_life)) + "/" +
         std::string(OwnerStageName(w.owner.stage)) +
         (w.owner_owns ? " owns" : "") + (w.owner.confirm ? " confirm" : "") +
         (w.owner.connected ? " connected" : "") + " candidate " +
         std::to_string(static_cast<int>(w.candidate_life)) + "/" +
         std::string(CandidateStageName(w.candidate.stage)) + " intent " +
         std::to_string(static_cast<int>(w.candidate.intent)) +
         (w.open ? " open" : "") + (w.open_at_owner ? " open-at-owner" : "") +
         " messages " + std::to_string(w.to_owner.size()) + "/" +
         std::to_string(w.to_candidate.size()) + " crashes " +
         std::to_string(w.crashes);
}

// The process of the lock is the only one that believes it owns.
bool OwnedOnce(const World& w) {
  const bool by_owner = w.owner_owns && w.owner.stage != OwnerStage::kReleased;
  const bool by_candidate = w.candidate.stage == CandidateStage::kOwning;
  if (by_owner && by_candidate) return false;
  if (by_owner && w.lock != Lock::kOwner) return false;
  return !by_candidate || w.lock == Lock::kCandidate;
}

// From here on nobody fails any more, both sides run, and all that is under
// way arrives: what becomes of it. (Progress only; every order was explored,
// one is enough to see that it ends.)
World Settle(World w) {
  w.owner_life = w.owner_life == Life::kDown ? Life::kDown : Life::kRunning;
  if (w.candidate_life == Life::kStopped) w.candidate_life = Life::kRunning;
  for (int steps = 0; steps < 200; ++steps) {
    if (w.owner_life == Life::kDown && w.lock == Lock::kFree) {
      Explorer::StartOwner(w);
    }
    if (w.candidate_life == Life::kDown) w.candidate_life = Life::kRunning;
    if (w.candidate.stage == CandidateStage::kIdle && w.lock == Lock::kFree &&
        w.phase == 0) {
      w.candidate.stage = CandidateStage::kLost;
      w.candidate.automatic = w.recorded_automatic;
    }
    const auto next = Explorer::Progress(w);
    const auto changed =
        std::find_if(next.begin(), next.end(),
                     [&](const World& one) { return one.Key() != w.Key(); });
    if (changed != next.end()) {
      w = *changed;
      continue;
    }
    // Only when nothing else moves: a deadline is longer than any step.
    const auto timers = Explorer::Timers(w);
    if (timers.empty()) break;
    w = timers.front();
  }
  return w;
}

void Check(bool automatic, int crashes, int decisions, size_t at_least) {
  const Explorer explorer(automatic, crashes, decisions);
  EXPECT_GE(explorer.seen().size(), at_least);
  size_t bad = 0;
  for (const World& w : explorer.seen()) {
    if (bad > 5) break;
    const auto wrong = [&](const std::string& what) {
      ++bad;
      ADD_FAILURE() << what << ": " << Show(w);
    };
    if (!OwnedOnce(w)) wrong("two owners, or one without the lock");
    if (!w.image) wrong("a ready image was lost");
    if (w.claimed_in_vain) wrong("taken over undecided, or rolled back");
    // A caller that was told so is told the truth.
    if (w.told_confirmed && w.told_rolled_back && w.decisions == 0 &&
        decisions == 1) {
      wrong("both were confirmed");
    }
    const World end = Settle(w);
    const bool decided =
        automatic || end.phase != static_cast<int>(HandoverPhase::kBegun);
    if (decided && end.lock == Lock::kFree) {
      wrong("nobody owns in the end: " + Show(end));
    }
    if (!OwnedOnce(end)) wrong("two owners in the end: " + Show(end));
    if (decisions == 1 && !automatic && w.told_confirmed &&
        end.lock != Lock::kCandidate) {
      wrong("confirmed, and not the candidate's in the end: " + Show(end));
    }
    if (decisions == 1 && !automatic && w.told_rolled_back &&
        end.lock != Lock::kOwner) {
      wrong("rolled back, and not the owner's in the end: " + Show(end));
    }
  }
}

TEST(HandoverModel, ManualWithOneDecision) { Check(false, 4, 1, 50000); }
TEST(HandoverModel, ManualWithTwoDecisions) { Check(false, 3, 2, 150000); }
TEST(HandoverModel, Automatic) { Check(true, 5, 0, 40000); }
TEST(HandoverModel, AutomaticWithADecision) { Check(true, 4, 1, 200000); }

}  // namespace
}  // namespace bim::handover
