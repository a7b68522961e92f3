#include "daemon/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <vector>

namespace bim::daemon {
namespace {

// Every command with the words that lead to it ("image ensure"; empty for the
// root), parents first.
void Visit(
    const CommandNode& node, const std::string& path,
    const std::function<void(const CommandNode&, const std::string&)>& visit) {
  visit(node, path);
  for (const CommandNode& child : node.commands) {
    Visit(child, path.empty() ? child.name : path + " " + child.name, visit);
  }
}

std::vector<std::string> CommandNames(const CommandNode& node) {
  std::vector<std::string> names;
  for (const CommandNode& child : node.commands) names.push_back(child.name);
  return names;
}

// The options that may follow a command: its own and the root's.
std::vector<OptionNode> OptionsOf(const CommandNode& root,
                                  const CommandNode& node) {
  std::vector<OptionNode> options = node.options;
  if (&node == &root) return options;
  for (const OptionNode& option : root.options) {
    bool hidden = false;
    for (const OptionNode& own : node.options) {
      hidden = hidden || own.names == option.names;
    }
    if (!hidden) options.push_back(option);
  }
  return options;
}

// In single quotes, for any of the shells.
std::string ShellQuoted(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

// "image ensure|image list": the paths of all commands below the root.
std::string PathPattern(const CommandNode& root) {
  std::vector<std::string> paths;
  Visit(root, "", [&](const CommandNode&, const std::string& path) {
    if (!path.empty()) paths.push_back(ShellQuoted(path));
  });
  return fmt::format("{}", fmt::join(paths, "|"));
}

std::string BashScript(const CommandNode& root) {
  std::string script =
      "# bash completion for bim; load it with: source <(bim completion "
      "bash)\n"
      "_bim() {\n"
      "  local cur prev word path= i words= values= files=\n"
      "  COMPREPLY=()\n"
      "  cur=${COMP_WORDS[COMP_CWORD]}\n"
      "  prev=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=${path:+$path }${COMP_WORDS[i]}\n"
      "    case \"$word\" in\n";
  script += fmt::format("      {}) path=$word ;;\n", PathPattern(root));
  script +=
      "    esac\n"
      "  done\n"
      "  case \"$path:$prev\" in\n";
  Visit(root, "", [&](const CommandNode& node, const std::string& path) {
    for (const OptionNode& option : OptionsOf(root, node)) {
      if (!option.takes_value) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : option.names) {
        patterns.push_back(ShellQuoted(path + ":" + name));
      }
      script += fmt::format("    {}) ", fmt::join(patterns, "|"));
      if (option.is_path) {
        script += "files=1 ;;\n";
      } else {
        script +=
            fmt::format("values='{} ' ;;\n", fmt::join(option.choices, " "));
      }
    }
  });
  script +=
      "  esac\n"
      "  if [[ -n $files ]]; then\n"
      "    compopt -o filenames 2>/dev/null\n"
      "    COMPREPLY=($(compgen -f -- \"$cur\"))\n"
      "    return\n"
      "  elif [[ -n $values ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$values\" -- \"$cur\"))\n"
      "    return\n"
      "  fi\n"
      "  case \"$path\" in\n";
  Visit(root, "", [&](const CommandNode& node, const std::string& path) {
    std::vector<std::string> options;
    for (const OptionNode& option : OptionsOf(root, node)) {
      options.insert(options.end(), option.names.begin(), option.names.end());
    }
    std::vector<std::string> words = CommandNames(node);
    words.insert(words.end(), node.argument_choices.begin(),
                 node.argument_choices.end());
    script += fmt::format("    {})\n      words='{}'\n      values='{}'\n",
                          path.empty() ? "''" : ShellQuoted(path),
                          fmt::join(words, " "), fmt::join(options, " "));
    if (node.argument_is_path) script += "      files=1\n";
    script += "      ;;\n";
  });
  script +=
      "  esac\n"
      "  if [[ $cur == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$values\" -- \"$cur\"))\n"
      "  elif [[ -n $files ]]; then\n"
      "    compopt -o filenames 2>/dev/null\n"
      "    COMPREPLY=($(compgen -f -- \"$cur\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
      "  fi\n"
      "}\n"
      "complete -F _bim bim backing-image-manager\n";
  return script;
}

// For the text of a zsh _describe item: "word:help".
std::string ZshItem(std::string_view word, std::string_view help) {
  std::string item;
  for (const char c : word) {
    if (c == ':') item += '\\';
    item += c;
  }
  return ShellQuoted(fmt::format("{}:{}", item, help));
}

std::string ZshScript(const CommandNode& root) {
  std::string script =
      "#compdef bim backing-image-manager\n"
      "# zsh completion for bim; load it with: source <(bim completion zsh)\n"
      "_bim() {\n"
      "  local path_words= word previous i\n"
      "  local -a items values\n"
      "  local files=\n"
      "  for ((i = 2; i < CURRENT; i++)); do\n"
      "    word=${path_words:+$path_words }${words[i]}\n"
      "    case \"$word\" in\n";
  script += fmt::format("      {}) path_words=$word ;;\n", PathPattern(root));
  script +=
      "    esac\n"
      "  done\n"
      "  previous=${words[CURRENT-1]}\n"
      "  case \"$path_words:$previous\" in\n";
  Visit(root, "", [&](const CommandNode& node, const std::string& path) {
    for (const OptionNode& option : OptionsOf(root, node)) {
      if (!option.takes_value) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : option.names) {
        patterns.push_back(ShellQuoted(path + ":" + name));
      }
      script += fmt::format("    {}) ", fmt::join(patterns, "|"));
      if (option.is_path) {
        script += "_files; return ;;\n";
      } else if (option.choices.empty()) {
        script +=
            fmt::format("_message {}; return ;;\n", ShellQuoted(option.help));
      } else {
        script +=
            fmt::format("values=({}); _describe value values; return ;;\n",
                        fmt::join(option.choices, " "));
      }
    }
  });
  script +=
      "  esac\n"
      "  case \"$path_words\" in\n";
  Visit(root, "", [&](const CommandNode& node, const std::string& path) {
    std::vector<std::string> options, words;
    for (const OptionNode& option : OptionsOf(root, node)) {
      for (const std::string& name : option.names) {
        options.push_back(ZshItem(name, option.help));
      }
    }
    for (const CommandNode& child : node.commands) {
      words.push_back(ZshItem(child.name, child.help));
    }
    for (const std::string& choice : node.argument_choices) {
      words.push_back(ShellQuoted(choice));
    }
    script += fmt::format("    {})\n      items=({})\n      values=({})\n",
                          path.empty() ? "''" : ShellQuoted(path),
                          fmt::join(words, " "), fmt::join(options, " "));
    if (node.argument_is_path) script += "      files=1\n";
    script += "      ;;\n";
  });
  script +=
      "  esac\n"
      "  if [[ $PREFIX == -* ]]; then\n"
      "    _describe option values\n"
      "  elif [[ -n $files ]]; then\n"
      "    _files\n"
      "  elif (( ${#items} )); then\n"
      "    _describe command items\n"
      "  fi\n"
      "}\n"
      "if [[ $funcstack[1] == _bim ]]; then\n"
      "  _bim \"$@\"\n"
      "else\n"
      "  compdef _bim bim backing-image-manager\n"
      "fi\n";
  return script;
}

std::string FishScript(const CommandNode& root) {
  std::vector<std::string> paths;
  Visit(root, "", [&](const CommandNode&, const std::string& path) {
    if (!path.empty()) paths.push_back(ShellQuoted(path));
  });
  std::string script = fmt::format(
      "# fish completion for bim; load it with: bim completion fish | source\n"
      "function __bim_at\n"
      "  set -l path ''\n"
      "  for word in (commandline -opc)[2..-1]\n"
      "    set -l next (string trim -- \"$path $word\")\n"
      "    if contains -- $next {}\n"
      "      set path $next\n"
      "    end\n"
      "  end\n"
      "  test \"$path\" = \"$argv[1]\"\n"
      "end\n"
      "complete -c bim -f\n"
      "complete -c backing-image-manager -w bim\n",
      fmt::join(paths, " "));
  Visit(root, "", [&](const CommandNode& node, const std::string& path) {
    const std::string at =
        fmt::format("complete -c bim -n \"__bim_at '{}'\"", path);
    for (const CommandNode& child : node.commands) {
      script += fmt::format("{} -a {} -d {}\n", at, ShellQuoted(child.name),
                            ShellQuoted(child.help));
    }
    if (!node.argument_choices.empty()) {
      script += fmt::format("{} -a '{}'\n", at,
                            fmt::join(node.argument_choices, " "));
    }
    if (node.argument_is_path) script += at + " -F\n";
    for (const OptionNode& option : OptionsOf(root, node)) {
      script += at;
      for (const std::string& name : option.names) {
        script += name.starts_with("--") ? " -l " + name.substr(2)
                                         : " -s " + name.substr(1);
      }
      if (option.takes_value) script += option.is_path ? " -r -F" : " -x";
      if (!option.choices.empty()) {
        script += fmt::format(" -a '{}'", fmt::join(option.choices, " "));
      }
      script += fmt::format(" -d {}\n", ShellQuoted(option.help));
    }
  });
  return script;
}

}  // namespace

base::Result<std::string> CompletionScript(const CommandNode& root,
                                           std::string_view shell) {
  if (shell == "bash") return BashScript(root);
  if (shell == "zsh") return ZshScript(root);
  if (shell == "fish") return FishScript(root);
  return base::InvalidArgumentError(
      fmt::format("expected bash, zsh or fish, found \"{}\"", shell));
}

}  // namespace bim::daemon
