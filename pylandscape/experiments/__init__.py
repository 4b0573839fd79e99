"""Published studies as short scripts on the public names.

registry        `pylandscape reproduce`: which studies there are, and how they run
lab, page, measured   what a study is handed, what it writes down, numbers with uncertainty
datasets, networks, methods, perturbations   what several studies compute on and with
studies/        one file for each study
table1, table1_cases, table1_report   the table of `pylandscape reproduce table1`
theorems        `pylandscape theory`: what theorems say beside what is found
demo            `pylandscape demo`
"""
