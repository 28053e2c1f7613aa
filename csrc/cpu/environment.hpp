// What the user sets outside the program.
#pragma once

#include <cstdlib>
#include <string>

namespace fastcrit {

/// Value of a variable without blanks around it. Empty where it is unset, or set to nothing, as scripts leave it.
inline std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    const std::string text = value == nullptr ? "" : value;
    const char* const blanks = " \t\r\n";
    const std::size_t first = text.find_first_not_of(blanks);
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

}  // namespace fastcrit
